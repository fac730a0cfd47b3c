"""Real processes to do harm to: a service, its agents, their images, and what has to be true whatever was done to them.

service = Service(tmp_path / "service"); service.start()
agent = Agent(tmp_path / "agent", service); agent.enroll("web01"); agent.protect(image)
ledger.reported(agent.push(), image)        # from now on this point has to stay as it is
service.kill(); service.start()             # same data folder, same port
ledger.check(service)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port

BINARIES = Path(sys.executable).parent


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    command: str
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON that it printed; it has to have succeeded."""
        assert self.code == 0, f"{self.command} failed:\n{self.err}"
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line on stderr that says what failed and the way out; it has to have failed, in order."""
        assert self.code == 1, f"{self.command} ended with {self.code}:\n{self.out}{self.err}"
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, f"{self.command} should say one line:\n{self.err}"
        assert re.match(r"understudy(-agent)?: \S", lines[0]), self.err
        return lines[0]


def run(program: str, *arguments: str | Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Ran:
    """Run one of our commands to its end. `prefix`: a command that runs it, such as unshare."""
    command = [*prefix, str(BINARIES / program), *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        env=None if env is None else {**os.environ, **env},
        stdin=subprocess.DEVNULL,
    )
    return Ran(f"{program} {' '.join(map(str, arguments))}", done.returncode, done.stdout, done.stderr)


class Service:
    """One `understudy serve` after the other, on the same data folder and port."""

    def __init__(self, folder: Path, *options: str, port: int | None = None, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = port or free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.options = options
        self._env = env or {}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns once it answers. Fails with its log if it does not get that far."""
        self.data.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "a") as log:
            self._process = process = subprocess.Popen(
                self.command(),
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **self._env},
            )
        limit = threading.Timer(PATIENCE_SECONDS, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
        finally:
            limit.cancel()
        if not line.startswith(f"ready {self.url}"):
            self.kill()
            raise AssertionError(f"the service did not start: {line!r}\n{self.log()[-4000:]}")

    def command(self) -> list[str]:
        listen = f"127.0.0.1:{self.port}"
        return [str(BINARIES / "understudy"), "serve", "--data", str(self.data), "--listen", listen, *self.options]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: nothing that lived in memory is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status. Not running: 0."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            code = process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        return code

    @property
    def log_path(self) -> Path:
        return self.folder / "service.log"

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def memory_peak_kib(self) -> int:
        return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())[0])

    def ask(self, *arguments: str | Path) -> Ran:
        """An operator's command."""
        return run("understudy", *arguments, "--data", self.data)

    def token(self, *arguments: str) -> str:
        return str(self.ask("enroll-token", "--json", *arguments).document["token"])

    def points(self, server: str) -> list[dict[str, Any]]:
        """Newest first."""
        found = self.ask("points", server, "--json").document
        return list(found if isinstance(found, list) else found["points"])

    def chain(self, server_id: str, volume: int = 0) -> Path:
        """The folder of a replica volume."""
        return self.data / "site" / server_id / f"volume-{volume}"


@contextlib.contextmanager
def served(folder: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Service]:
    """A running service in `folder`; afterwards it ended well, complained of nothing and left nothing behind."""
    made = Service(folder, *options, env=env)
    made.start()
    try:
        yield made
    except BaseException:  # whatever failed with it is what is told; but it does not go on
        made.stop()
        raise
    code = made.stop()
    assert "Traceback" not in made.log(), made.log()[-8000:]
    assert code == 0, made.log()[-4000:]
    assert nothing_left_behind(folder) == []


def enrolled(folder: Path, service: Service, name: str) -> Agent:
    """An agent of the service, with an identity."""
    made = Agent(folder, service)
    made.enroll(name)
    return made


class Agent:
    """An agent's state folder, and commands run on it. `url`: reached by another way, such as a relay."""

    def __init__(self, folder: Path, service: Service, url: str | None = None) -> None:
        self.folder = folder
        self.service = service
        self.url = url or service.url
        self.prefix: tuple[str, ...] = ()
        self.env: dict[str, str] = {}

    def ask(self, *arguments: str | Path) -> Ran:
        return run("understudy-agent", "--state", self.folder, *arguments, env=self.env, prefix=self.prefix)

    def enroll(self, name: str) -> None:
        self.ask("enroll", self.url, self.service.token("--name", name), "--json").document  # noqa: B018  # asserts

    def protect(self, *paths: Path | str) -> None:
        self.ask("protect", *paths, "--json").document  # noqa: B018  # asserts

    def push(self, *arguments: str) -> Ran:
        return self.ask("push", "--json", *arguments)

    def pull(self, onto: Path | str, point: str = "latest", volume: int = 0) -> Ran:
        return self.ask("pull", point, "--volume", str(volume), "--onto", onto, "--yes", "--json")

    def begin(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a command and leave it running; the caller ends and waits for it."""
        return subprocess.Popen(
            [*self.prefix, str(BINARIES / "understudy-agent"), "--state", str(self.folder), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **self.env},
        )

    @property
    def server_id(self) -> str:
        return str(json.loads((self.folder / "identity.json").read_text())["server_id"])

    @property
    def server_name(self) -> str:
        return str(json.loads((self.folder / "identity.json").read_text())["server_name"])


def ended(process: subprocess.Popen[str]) -> Ran:
    """How a command that `begin` started ended, waiting for it."""
    try:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
    return Ran(" ".join(map(str, process.args)), process.returncode, out, err)  # type: ignore[arg-type]


def sum_of(path: Path | str) -> str:
    """SHA-256 of a file or device: by another library than the product's."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Ledger:
    """What every point that was ever reported has to hold, for as long as it exists. One server's.

    `keep`: how many the service keeps; only the newest of all have to be there."""

    agent: Agent
    folder: Path
    keep: int = 48
    sums: dict[str, list[str]] = field(default_factory=dict)

    def reported(self, pushed: Ran, *sources: Path | str) -> str:
        """A push succeeded; its point's id. The sources must not have changed since."""
        point = str(pushed.document["point"])
        self.sums[point] = [sum_of(source) for source in sources]
        return point

    def check(self, service: Service, *sources: Path | str) -> list[str]:
        """All are listed, verify, and equal what they were taken from. Returns the ids of all points, newest first.

        `sources`: what a point that was made, but never reported (the agent or the line died first), may hold."""
        listed = [point["id"] for point in service.points(self.agent.server_name)]
        for point in reversed(listed):
            if point not in self.sums and sources:
                self.sums[point] = [sum_of(source) for source in sources]
        known = [point for point in self.sums if point in listed]
        assert known == listed[::-1], f"listed: {listed}, made: {list(self.sums)}"
        wanted = list(self.sums)[-self.keep :]
        assert [point for point in wanted if point not in listed] == [], "a recovery point was lost"
        for point in listed:
            verified = service.ask("verify", point)
            if verified.code and point not in wanted and not self._is_listed(service, point):
                continue  # retention was due, and took it away meanwhile
            assert verified.code == 0, verified.err
            for volume, expected in enumerate(self.sums[point]):
                held = self.content(service, point, volume)
                if held != expected and point not in wanted and not self._is_listed(service, point):
                    break
                assert held == expected, f"{point} is not what was pushed"
        return listed

    def _is_listed(self, service: Service, point: str) -> bool:
        return point in [one["id"] for one in service.points(self.agent.server_name)]

    def content(self, service: Service, point: str, volume: int = 0) -> str:
        """The sum of a point's volume as stock qemu-img sees it (else what it complains of); needs no service."""
        out = self.folder / "check.raw"
        image = service.chain(self.agent.server_id, volume) / f"{point}.qcow2"
        done = subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", image, out], check=False, capture_output=True)
        try:
            return done.stderr.decode() if done.returncode else sum_of(out)
        finally:
            out.unlink(missing_ok=True)

    def exported(self, service: Service, point: str, volume: int = 0) -> str:
        """The sum of what `understudy export` gives."""
        out = self.folder / "export.raw"
        done = service.ask("export", point, "--volume", str(volume), "--format", "raw", out)
        assert done.code == 0, done.err
        try:
            return sum_of(out)
        finally:
            out.unlink()


def nothing_left_behind(folder: Path) -> list[str]:
    """Processes that still work on something below `folder`, when those that are just ending had time for it."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while (found := _working_below(folder)) and time.monotonic() < limit:
        time.sleep(0.05)
    return found


def _working_below(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(folder) in line:
                    found.append(f"{entry.name}: {line}")
    return found


def children(pid: int) -> list[int]:
    """Those that any of its threads began. None of a process that has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
