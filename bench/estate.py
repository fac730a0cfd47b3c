"""What runs are measured on: a service, and small servers with a recovery point each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import guest
from bench.measure import BenchError, timed
from bench.service import PROGRAMS, Service, agent_command, enroll
from recovery.repair.worker_image import ENVIRONMENT

GUEST_BYTES = 64 << 20


class Estate:
    """Servers of these names, protected; a context manager. All boot from copies of `image`."""

    def __init__(self, folder: Path, image: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = tuple(names)
        worker = {name: os.environ[name] for name in (ENVIRONMENT,) if name in os.environ}
        self.service = Service(folder / "service", "tcg", settings=worker)
        self._image = image
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Estate:
        self.service.__enter__()
        try:
            for name in self.names:
                shutil.copyfile(self._image, self.image(name))
                enroll(self.service, self.agent(name), name, self.image(name))
                timed(agent_command(self.agent(name), "push", "--json"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.communicate()
        with contextlib.suppress(BenchError):  # what failed has been told, and instances must not be left behind
            for run in self.service.ask("runs"):
                if run["state"] != "ended":
                    self.end(run)
        self.service.__exit__()

    def image(self, name: str) -> Path:
        return self.folder / f"{name}.img"

    def agent(self, name: str) -> Path:
        """Its state folder."""
        return self.folder / f"agent-{name}"

    def apply(self, plan: dict[str, Any]) -> None:
        path = self.folder / "plan.yaml"
        path.write_text(json.dumps(plan))
        self.service.ask("plan", "apply", path)

    def run(self, *arguments: str) -> tuple[float, dict[str, Any]]:
        """An operator's command that performs a run: its seconds, and the run. Raises BenchError (it failed)."""
        done = timed([PROGRAMS / "understudy", *arguments, "--yes", "--data", self.service.data, "--json"])
        return done.seconds, json.loads(done.out)

    def ends_with(self, child: subprocess.Popen[str]) -> None:
        """A process that must not outlive the estate."""
        self._children.append(child)

    def end(self, run: dict[str, Any]) -> None:
        self.service.ask("end", run["id"], "--force", "--yes")


def server(name: str) -> dict[str, Any]:
    """A server as plans have it: up when it answers. It is booted as it is, as one would by hand."""
    gate = {"http": {"port": guest.PORT, "path": "/health", "status": 200, "timeout_seconds": 300}}
    return {"name": name, "cpus": 1, "memory_mib": guest.MEMORY_MIB, "repair": False, "gates": [gate]}
