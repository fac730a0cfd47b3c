"""Over long and bad lines: how much of the line a full push uses, what is sent twice, what restarts cost.

clean: 100 Mbit/s, 40 ms each way, with as much as a full push of the 4 GiB image of `python -m bench` packs to; also
with a small disk, where start, end and TCP's finding out what the line takes weigh more. Content can have 96.4 % of the
line at most: the rest are heads of IP, TCP and TLS. lossy: the same line, 1 % of packets dropped, all connections reset
every 10 s. satellite: 2 Mbit/s, agent and service killed every 20 s. The lines are those of bench/link.py.

python -m bench.line [--mib 192] [--only clean|lossy|satellite]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.link import NEAR, Line, Link
from bench.measure import BenchError, environment, undo_when_told_to_end
from bench.service import Service, agent_command

MIB = 1 << 20
LARGE_MIB = 1050
"""What a full push of the image of `python -m bench` brings over the line."""
LEAST_USE, MOST_TWICE = 0.92, 0.10
CLEAN = Line(bits_a_second=100e6)
LOSSY = Line(bits_a_second=100e6, loss=0.01, cut_seconds=10)
SATELLITE = Line(bits_a_second=2e6)
ROUND_SECONDS, MOST_ROUNDS = 20.0, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """`use` is bytes of content by what the line could have carried while the command ran, start-up and all.
    `twice` is what was sent more than once, by the content. `rounds`: pushes, all but the last of them killed."""

    what: str
    mib: int
    seconds: float
    use: float
    twice: float
    rounds: int = 1
    finished: bool = True


class _Lab:
    """A service at one end of a line, an agent with a disk that cannot be compressed at the other."""

    def __init__(self, folder: Path, line: Line, mib: int) -> None:
        self.mib = mib
        self._line = line
        self._folder = folder
        self._link = Link(line)
        self._state = folder / "agent"
        self._port = 18470
        self._service: Service | None = None

    def __enter__(self) -> _Lab:
        self._link.__enter__()
        try:
            self.start_service()
            assert self._service is not None
            disk = self._folder / "disk.img"
            rng = random.Random(self.mib)
            with disk.open("wb") as file:
                for _ in range(self.mib):
                    file.write(rng.randbytes(MIB))
            token = self._service.ask("enroll-token", "--name", "far")["token"]
            for arguments in (("enroll", self._service.url, token), ("protect", str(disk))):
                done = subprocess.run(
                    [*self._link.far, *map(str, agent_command(self._state, *arguments))],
                    capture_output=True, text=True, env=environment({}), check=False,
                )  # fmt: skip
                if done.returncode:
                    raise BenchError(f"{arguments[0]} over the line failed: {done.stderr}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_service()
        self._link.__exit__()

    def start_service(self) -> None:
        self._service = Service(self._folder / "service", "tcg", listen=f"{NEAR}:{self._port}", prefix=self._link.near)
        self._service.__enter__()

    def stop_service(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            service.__exit__()

    def begin_push(self) -> subprocess.Popen[str]:
        command = [*self._link.far, *map(str, agent_command(self._state, "push", "--json"))]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment({}))

    def carried_bytes(self) -> int:
        """What the agent's end has sent so far, packets' heads and repetitions too."""
        shown = subprocess.run([*self._link.far, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True)
        return sum(int(row.split()[9]) for row in shown.stdout.splitlines() if row.strip().startswith("us"))

    def result(self, what: str, seconds: float, sent_bytes: int, rounds: int, finished: bool) -> Pushed:
        content = self.mib * MIB
        return Pushed(
            what=what,
            mib=self.mib,
            seconds=round(seconds, 1),
            use=round(content * 8 / self._line.bits_a_second / seconds, 3),
            twice=round(max(0.0, sent_bytes / content - 1), 3),
            rounds=rounds,
            finished=finished,
        )


_RECEIVE = """import socket
listening = socket.create_server(("10.213.7.1", 5001)); print("up", flush=True); line, _ = listening.accept()
while line.recv(1 << 20): pass
line.send(b"x")"""
_SEND = """import socket, sys, time
began = time.monotonic(); line = socket.create_connection(("10.213.7.1", 5001)); data = bytes(1 << 20)
for _ in range(int(sys.argv[1])): line.sendall(data)
line.shutdown(1); line.recv(1); print(time.monotonic() - began)"""


def measure_plain(line: Line, mib: int) -> float:
    """What one plain TCP connection gets of the line on this machine at this moment: what any other figure is to be
    seen beside. Raises BenchError."""
    with (
        Link(line) as link,
        subprocess.Popen(
            [*link.near, sys.executable, "-c", _RECEIVE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as receiving,
    ):
        try:
            assert receiving.stdout is not None
            receiving.stdout.readline()
            sending = [*link.far, sys.executable, "-c", _SEND, str(mib)]
            done = subprocess.run(sending, capture_output=True, text=True, check=True, timeout=400)
        except subprocess.SubprocessError as error:
            raise BenchError(f"plain TCP over the line failed: {error}") from None
        finally:
            receiving.kill()
    return mib * MIB * 8 / line.bits_a_second / float(done.stdout)


def _told(push: subprocess.Popen[str], timeout_seconds: float) -> tuple[str, str] | None:
    """What it printed; None: it took too long. However this ends, it does not go on."""
    try:
        return push.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        push.kill()
        push.wait()


def measure_push(folder: Path, what: str, line: Line, mib: int) -> Pushed:
    """Raises BenchError."""
    with _Lab(folder, line, mib) as lab:
        began = time.monotonic()
        push = lab.begin_push()
        told = _told(push, 400)
        if told is None:
            raise BenchError(f"{what}: no point within 400 s")
        out, err = told
        if push.returncode:
            raise BenchError(f"{what}: the push failed: {err}")
        return lab.result(what, time.monotonic() - began, json.loads(out)["sent_bytes"], 1, True)


def measure_restarts(folder: Path, what: str, line: Line, mib: int) -> Pushed:
    """Kill the agent and the service, in turn both, until a push gets through. Raises BenchError."""
    with _Lab(folder, line, mib) as lab:
        began, carried = time.monotonic(), lab.carried_bytes()
        for number in range(1, MOST_ROUNDS + 1):
            push = lab.begin_push()
            _told(push, ROUND_SECONDS)
            if push.returncode == 0:
                return lab.result(what, time.monotonic() - began, lab.carried_bytes() - carried, number, True)
            lab.stop_service()
            lab.start_service()
        return lab.result(what, time.monotonic() - began, lab.carried_bytes() - carried, MOST_ROUNDS, False)


def table(found: list[Pushed]) -> str:
    lines = [
        "| line | disk | seconds | of the line used | sent twice | rounds | limit | holds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        limit, holds = {
            "clean": (f"use >= {LEAST_USE:.0%}", one.use >= LEAST_USE) if one.mib >= LARGE_MIB else ("", None),
            "lossy": (f"twice <= {MOST_TWICE:.0%}", one.twice <= MOST_TWICE),
            "satellite": ("gets through", one.finished),
        }[one.what]
        lines.append(
            f"| {one.what} | {one.mib} MiB | {one.seconds:.1f} | {one.use:.1%} | {one.twice:.1%} | {one.rounds} "
            f"| {limit} | {'' if holds is None else 'yes' if holds else '**no**'} |"
        )
    return "\n".join(lines)


def main() -> int:
    undo_when_told_to_end()
    parser = argparse.ArgumentParser(prog="python -m bench.line")
    parser.add_argument("--mib", type=int, default=192)
    parser.add_argument("--only", choices=("clean", "lossy", "satellite"))
    options = parser.parse_args()
    found = []
    if options.only in (None, "clean"):
        print(f"one plain TCP connection on the clean line: {measure_plain(CLEAN, LARGE_MIB):.1%} of it\n", flush=True)
    for what, line, mib in (
        ("clean", CLEAN, options.mib), ("clean", CLEAN, LARGE_MIB), ("lossy", LOSSY, options.mib),
        ("satellite", SATELLITE, options.mib // 16),
    ):  # fmt: skip
        if options.only in (None, what):
            measure = measure_restarts if what == "satellite" else measure_push
            with tempfile.TemporaryDirectory(prefix="understudy-line-") as folder:
                try:
                    found.append(measure(Path(folder), what, line, mib))
                except BenchError as error:
                    print(f"{what}: not measured: {error}", file=sys.stderr)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
