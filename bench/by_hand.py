"""Booting by hand, as who has no Understudy would: an image under QEMU, by the command line of one of our instances."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench.measure import BenchError, environment
from bench.peers import free_port

PATIENCE_SECONDS = 600.0
POLL_SECONDS = 0.1


def command_line(pid_file: Path) -> list[str]:
    """Of the QEMU process that wrote it."""
    pid = int(pid_file.read_text())
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")


class ByHand:
    """`line` on an overlay of the raw `image`, with a port of its own; its `folder` exists as long as it runs."""

    def __init__(self, line: list[str], image: Path, folder: Path) -> None:
        instance = str(Path(line[line.index("-pidfile") + 1]).parent)
        network = next(argument for argument in line if "hostfwd=" in argument)
        theirs = network.partition("hostfwd=tcp:127.0.0.1:")[2].partition("-")[0]
        self._port = free_port()
        self._command = [
            argument.replace(instance, str(folder)).replace(f"127.0.0.1:{theirs}-", f"127.0.0.1:{self._port}-")
            for argument in line
        ]
        self._image = image
        self._folder = folder

    def __enter__(self) -> ByHand:
        self._folder.mkdir()
        overlay: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", self._image, "-F", "raw"]
        subprocess.run([*overlay, self._folder / "volume-0.qcow2"], check=True)
        subprocess.run(self._command, check=True, cwd=self._folder, env=environment({}), capture_output=True)
        return self

    def await_answer(self, path: str) -> None:
        """Until a GET of this is answered with 200. Raises BenchError."""
        began = time.monotonic()
        while not _answers(f"http://127.0.0.1:{self._port}{path}"):
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise BenchError(f"the image does not come up by hand in {PATIENCE_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)

    def __exit__(self, *_: object) -> None:
        pid = int((self._folder / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.05)
        shutil.rmtree(self._folder)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
