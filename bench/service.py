"""The product, driven as its users drive it: a service process, and agents by their command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measure import BenchError, Cost, environment, timed

PROGRAMS = Path(sys.executable).parent
START_SECONDS = 120.0


class Service:
    """One `understudy serve`; a context manager. `accel` forces the accelerator, so that none is probed.
    `prefix`: a command that runs it and its operator, such as one that enters a network namespace. `settings` are for
    its environment."""

    def __init__(
        self,
        folder: Path,
        accel: str | None,
        *,
        listen: str = "127.0.0.1:0",
        prefix: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self._listen, self._prefix = listen, tuple(prefix)
        self._log = folder / "service.log"
        self._env = environment({**({"UNDERSTUDY_ACCEL": accel} if accel else {}), **(settings or {})})
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Service:
        self.begin()
        self.await_ready()
        return self

    def begin(self) -> None:
        """Start a process; another one on the same data after a kill."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*self._prefix, PROGRAMS / "understudy", "serve", "--data", self.data, "--listen", self._listen],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._env,
            )

    def await_ready(self) -> None:
        """Until it answers. Raises BenchError."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            self.__exit__()
            raise BenchError(f"understudy serve did not start: {self._log.read_text()[-2000:]}")
        self.url = line.split()[1]

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def kill(self) -> None:
        """SIGKILL: nothing that lived in memory is told."""
        assert self._process is not None
        self._process.kill()
        self.__exit__()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def ask(self, *arguments: str | Path) -> Any:
        """An operator's command; the document it prints."""
        done = timed([*self._prefix, PROGRAMS / "understudy", *arguments, "--data", self.data, "--json"])
        return json.loads(done.out)


class Understudy:
    """The contender that all this is about: an agent that protects `source`, and a service of its own."""

    name = "understudy"

    def __init__(self, folder: Path, source: Path) -> None:
        self._state = folder / "agent"
        self.service = Service(folder, "tcg")
        self.service.__enter__()
        try:
            enroll(self.service, self._state, "bench", source)
        except BaseException:
            self.close()
            raise

    def push(self) -> Cost:
        return pushed(self.service, self._state)

    def target(self, folder: Path) -> Path:
        return folder / "disk.img"

    def pull(self, folder: Path) -> Cost:
        command = agent_command(
            self._state, "pull", "latest", "--volume", "0", "--onto", self.target(folder), "--yes", "--json"
        )
        done = timed(command, servers=[self.service.pid])
        wire_bytes = json.loads(done.out)["received_bytes"]
        return Cost(seconds=done.seconds, cpu_seconds=done.cpu_seconds, wire_bytes=wire_bytes)

    def close(self) -> None:
        self.service.__exit__()


def enroll(service: Service, state: Path, name: str, source: Path) -> None:
    """Make an agent of the service, which protects `source`."""
    token = service.ask("enroll-token", "--name", name)["token"]
    timed(agent_command(state, "enroll", service.url, token, "--json"))
    timed(agent_command(state, "protect", source, "--json"))


def pushed(service: Service, state: Path) -> Cost:
    """One push of the agent whose state folder this is."""
    done = timed(agent_command(state, "push", "--json"), servers=[service.pid])
    return Cost(seconds=done.seconds, cpu_seconds=done.cpu_seconds, wire_bytes=json.loads(done.out)["sent_bytes"])


def agent_command(state: Path, *arguments: str | Path) -> list[str | Path]:
    return [PROGRAMS / "understudy-agent", "--state", state, *arguments]
