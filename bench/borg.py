"""borg over a pipe: what `borg create ssh://...` does, with the two ends on one machine and no ssh in between."""

from __future__ import annotations

from pathlib import Path

from bench.measure import Cost, timed
from bench.peers import directory_bytes


class Borg:
    """`borg create -C zstd,1` into a repository of its own; each archive reads the file again."""

    name = "borg"
    needs = ("borg",)
    flags = "borg create -C zstd,1 --files-cache=disabled | extract; borg serve at the other end of a pipe"

    def __init__(self, folder: Path, source: Path) -> None:
        self._source = source
        self._repository = folder / "repository"
        folder.mkdir(parents=True)
        shell = folder / "no-ssh"
        shell.write_text('#!/bin/sh\nshift\nexec "$@"\n')  # the host's name, then the command
        shell.chmod(0o755)
        self._env = {
            "BORG_REPO": f"ssh://here{self._repository}",
            "BORG_RSH": str(shell),
            "BORG_BASE_DIR": str(folder / "base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self._archives = 0
        timed(("borg", "init", "-e", "none"), env=self._env)

    def push(self) -> Cost:
        before = directory_bytes(self._repository)
        self._archives += 1
        command = ("borg", "create", "-C", "zstd,1", "--files-cache=disabled", f"::{self._archives}", self._source)
        done = timed(command, env=self._env)
        return Cost(
            seconds=done.seconds,
            cpu_seconds=done.cpu_seconds,
            wire_bytes=directory_bytes(self._repository) - before,
        )

    def target(self, folder: Path) -> Path:
        return folder / self._source.relative_to("/")

    def pull(self, folder: Path) -> Cost:
        done = timed(("borg", "extract", f"::{self._archives}"), env=self._env, cwd=folder)
        return Cost(seconds=done.seconds, cpu_seconds=done.cpu_seconds)

    def close(self) -> None:
        """Nothing runs between commands."""
