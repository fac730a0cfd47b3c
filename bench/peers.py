"""What one would pick instead: restic over REST, and rsync. Each with a repository of its own, on loopback.

Both speak plain TCP, without TLS, and flush nothing to the disk: all in their favour.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measure import BenchError, Cost, environment, timed

START_SECONDS = 20.0
PACKAGES = {"restic": "restic", "rclone": "rclone", "rsync": "rsync", "borg": "borgbackup"}


def missing() -> list[str]:
    return [package for program, package in PACKAGES.items() if shutil.which(program) is None]


def install() -> None:
    """Install the peers that are missing where that is possible; what stays missing has a row that says so."""
    names = missing()
    if not names or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *names]
    env = environment({"DEBIAN_FRONTEND": "noninteractive"})
    for attempt in (command, ["apt-get", "update"], command):
        if subprocess.run(attempt, env=env, capture_output=True).returncode == 0 and not missing():
            return


def versions() -> dict[str, str]:
    """Of the peers that are here."""
    asked = {"restic": ["restic", "version"], "rclone": ["rclone", "version"], "rsync": ["rsync", "--version"],
             "borg": ["borg", "--version"]}  # fmt: skip
    found = {}
    for name, command in asked.items():
        if shutil.which(name):
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
            match = re.search(r"v?\d+\.[\w.]+", out)
            found[name] = match.group() if match else out
    return found


class Restic:
    """`restic backup --force` to `rclone serve restic` over HTTP; without --force it would not read the file again."""

    name = "restic"
    needs = ("restic", "rclone")
    flags = "restic backup --force | restore; rclone serve restic (HTTP)"

    def __init__(self, folder: Path, source: Path) -> None:
        self._source = source
        self._repository = folder / "repository"
        self._repository.mkdir(parents=True)
        port = free_port()
        self._env = {
            "RESTIC_REPOSITORY": f"rest:http://127.0.0.1:{port}/",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(folder / "cache"),
        }
        self._server = _serve(
            ["rclone", "serve", "restic", "--addr", f"127.0.0.1:{port}", self._repository], port, folder
        )
        try:
            timed(("restic", "init"), env=self._env)
        except BaseException:
            self.close()
            raise

    def push(self) -> Cost:
        before = directory_bytes(self._repository)
        done = timed(("restic", "backup", "--force", self._source), env=self._env, servers=[self._server.pid])
        return Cost(
            seconds=done.seconds,
            cpu_seconds=done.cpu_seconds,
            wire_bytes=directory_bytes(self._repository) - before,  # what went over is what lies there
        )

    def target(self, folder: Path) -> Path:
        return folder / self._source.relative_to("/")

    def pull(self, folder: Path) -> Cost:
        command = ("restic", "restore", "latest", "--target", folder)
        done = timed(command, env=self._env, servers=[self._server.pid])
        return Cost(seconds=done.seconds, cpu_seconds=done.cpu_seconds)

    def close(self) -> None:
        _end(self._server)


class Rsync:
    """An rsync daemon, and the client with --inplace and zstd."""

    name = "rsync"
    needs = ("rsync",)
    flags = "rsync --inplace --ignore-times -z --zc=zstd --stats; rsync --daemon"
    _FLAGS = ("--inplace", "--ignore-times", "-z", "--zc=zstd", "--stats")

    def __init__(self, folder: Path, source: Path) -> None:
        self._source = source
        module = folder / "module"
        module.mkdir(parents=True)
        port = free_port()
        self._url = f"rsync://127.0.0.1:{port}/bench/"
        configuration = folder / "rsyncd.conf"
        configuration.write_text(
            f"pid file = {folder}/pid\nlog file = {folder}/log\nuse chroot = no\n"
            + ("uid = 0\ngid = 0\n" if os.geteuid() == 0 else "")
            + f"[bench]\npath = {module}\nread only = no\n"
        )
        command = [
            "rsync",
            "--daemon",
            "--no-detach",
            "--address=127.0.0.1",
            f"--port={port}",
            f"--config={configuration}",
        ]
        self._server = _serve(command, port, folder)

    def push(self) -> Cost:
        return self._run(self._source, self._url)

    def target(self, folder: Path) -> Path:
        return folder / self._source.name

    def pull(self, folder: Path) -> Cost:
        return self._run(self._url + self._source.name, f"{folder}/")

    def _run(self, origin: str | Path, destination: str) -> Cost:
        done = timed(["rsync", *self._FLAGS, origin, destination], servers=[self._server.pid])
        sums = re.findall(r"^Total bytes (?:sent|received): ([\d,]+)", done.out, re.MULTILINE)
        wire_bytes = sum(int(text.replace(",", "")) for text in sums)
        return Cost(seconds=done.seconds, cpu_seconds=done.cpu_seconds, wire_bytes=wire_bytes)

    def close(self) -> None:
        _end(self._server)


def _serve(command: Sequence[str | Path], port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a server in the background; returns once it answers. Raises BenchError."""
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    _end(server)
    raise BenchError(f"{command[0]} does not answer: {log.read_text(errors='replace')[-2000:]}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def directory_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
