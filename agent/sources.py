"""The protected volumes as this machine has them now: under which name each is, and what is kept for the next time."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.inventory import machine_id
from agent.protocol.errors import NotADisk, SourceError, SourceInDoubt, UnderstudyError, UsageError
from agent.protocol.serials import volume_serial
from agent.state import State
from agent.volumes.candidates import Candidate, candidate, candidates, serial_of
from agent.volumes.choice import choose, is_same_device
from agent.volumes.sighting import Sighting
from agent.volumes.source import SourceVolume

Scan = Callable[[Path], list[Candidate]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProtectedSource:
    """An open protected volume. `found_at`: the disk that it is here, where that is not at its own path."""

    path: str
    source: SourceVolume
    found_at: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a protected volume is now: `device` opens it; None: that cannot be told, for the reason `problem`. Then
    `size_bytes` is what it was when it was last seen, 0 if it never was."""

    path: str
    device: str | None
    size_bytes: int = 0
    problem: str = ""

    @property
    def found_at(self) -> str | None:
        """The disk that it is here, where that is another than at its path."""
        return self.device if self.device != self.path else None


def open_protected(
    state: State, paths: list[str], resources: contextlib.ExitStack, scan: Scan = candidates
) -> list[ProtectedSource]:
    """The protected volumes, each open until `resources` closes; remembers how they look. The caller holds the state's
    lock. Raises SourceInDoubt, and what SourceVolume.open raises."""
    finder, before = Finder(state, scan), state.seen()
    opened, now = [], {}
    for path in paths:
        source = resources.enter_context(finder.open(path))
        opened.append(ProtectedSource(path, source, source.path if source.path != path else None))
        sighting = finder.sighting(path, source)
        if sighting is not None:
            now[path] = sighting
    _check_each_is_another(opened)
    for path, sighting in now.items():
        last = before.get(path)
        if not sighting.at_path and (last is None or last.device != sighting.device):
            log.info("the volume protected as %s is %s here: %s", path, sighting.device, ", ".join(sighting.marks))
    state.remember(now)
    return opened


def places(state: State, scan: Scan = candidates) -> list[Place]:
    """Where the protected volumes are, for a look: nothing is remembered, no doubt is raised."""
    finder, seen, found = Finder(state, scan), state.seen(), []
    for path in state.protected():
        try:
            with finder.open(path) as source:
                found.append(Place(path, source.path, source.size_bytes))
        except UnderstudyError as error:
            last_bytes = seen[path].size_bytes if path in seen else 0
            found.append(Place(path, None, last_bytes, problem=str(error)))
    return found


def protect(state: State, paths: list[str], scan: Scan = candidates) -> dict[str, int]:
    """Protect these from now on; returns their sizes in bytes. What was protected already is found where it is by now.

    Raises like open_protected."""
    finder, seen, sizes = Finder(state, scan), {}, {}
    known = state.protected()
    for path in paths:
        with finder.open(path) if path in known else SourceVolume.open(path) as source:
            sizes[path] = source.size_bytes
            sighting = finder.sighting(path, source)
            if sighting is not None:
                seen[path] = sighting
    state.protect(paths)
    state.remember(seen)
    return sizes


def relocate(state: State, path: str, disk: str) -> Sighting:
    """Take the operator's word for which disk of this machine is the volume protected as `path`.

    Raises UsageError, and what SourceVolume.open raises."""
    if path not in state.protected():
        raise UsageError(f"{path} is not protected", "name the path as it was protected: understudy-agent inventory")
    with SourceVolume.open(disk) as source:
        sighting = Finder(state).sighting(path, source)
    if sighting is None:
        raise NotADisk(f"{disk} is an image file, and those are found by their path", "let the path lead to it")
    state.remember({**state.seen(), path: sighting})
    return sighting


class Finder:
    """Finds protected volumes. The machine's disks are looked at once, and only where there is a question."""

    def __init__(self, state: State, scan: Scan = candidates) -> None:
        self._state = state
        self._scan = scan
        self._scanned: list[Candidate] | None = None
        self._machine_id = machine_id()
        self._seen = state.seen()

    def open(self, path: str) -> SourceVolume:
        """The volume protected as `path`, open. Raises SourceInDoubt, and what SourceVolume.open raises."""
        seen = self._seen.get(path)
        if seen is None or self._is_led_by_link(seen):
            return SourceVolume.open(path)
        return self._same_device(seen) or self._chosen(seen)

    def sighting(self, path: str, source: SourceVolume) -> Sighting | None:
        """How an open volume looks, to be remembered; None for image files, which are found by their path alone."""
        if not source.is_device:
            return None
        now = candidate(source, self._state.folder)
        return Sighting(
            path=path,
            machine_id=self._machine_id,
            device=now.device,
            at_path=_is_same(path, now.device),
            size_bytes=now.size_bytes,
            marks=now.marks,
            serial=now.serial,
            attachment=now.attachment,
            holds_state=now.holds_state,
        )

    def _is_led_by_link(self, seen: Sighting) -> bool:
        """A symlink is somebody's word, and may lead elsewhere by now: on the machine where it led to the volume."""
        path = Path(seen.path)
        return seen.machine_id == self._machine_id and seen.at_path and path.is_symlink() and path.exists()

    def _same_device(self, seen: Sighting) -> SourceVolume | None:
        """Where it was, without a look at other disks: they may be asleep, and this is what happens nearly always."""
        if seen.machine_id != self._machine_id:
            return None
        try:
            source = SourceVolume.open(_name(seen.path, seen.device))
        except NotADisk:
            return None
        if is_same_device(seen, source.attachment, serial_of(*source.number)):
            return source
        source.close()
        return None

    def _chosen(self, seen: Sighting) -> SourceVolume:
        try:
            chosen = choose(seen, self._disks(seen), machine_id=self._machine_id, named=self._name_at_site(seen.path))
        except SourceInDoubt as doubt:
            if Path(seen.path).exists():
                raise
            raise SourceInDoubt(f"{seen.path} is not there, and {doubt.message}", doubt.hint) from None
        source = SourceVolume.open(_name(seen.path, chosen.device))
        now = candidate(source, self._state.folder)
        if (now.attachment, now.marks) != (chosen.attachment, chosen.marks):
            source.close()
            raise SourceInDoubt(f"{chosen.device} changed while it was looked at", "push again")
        return source

    def _disks(self, seen: Sighting) -> list[Candidate]:
        """Those of the machine, and what is at the volume's path or was at its place, even if that is no disk of it."""
        if self._scanned is None:
            self._scanned = self._scan(self._state.folder)
        disks = {disk.device: disk for disk in self._scanned}
        for device in {seen.path, seen.device} - set(disks):
            with contextlib.suppress(SourceError), SourceVolume.open(device) as source:
                if source.is_device:
                    found = candidate(source, self._state.folder)
                    disks[found.device] = found
        return list(disks.values())

    def _name_at_site(self, path: str) -> str | None:
        try:
            return volume_serial(self._state.identity().server_id, path)
        except UsageError:
            return None


def _name(path: str, device: str) -> str:
    """The volume's own path where it leads to the device, else the device's name."""
    return path if _is_same(path, device) else device


def _is_same(path: str, device: str) -> bool:
    try:
        return os.stat(path).st_rdev == os.stat(device).st_rdev != 0
    except OSError:
        return False


def _check_each_is_another(opened: list[ProtectedSource]) -> None:
    for one in opened:
        for other in opened:
            if one.found_at and one is not other and one.source.is_same_device_as(other.source):
                raise SourceInDoubt(
                    f"{one.path} and {other.path} both seem to be {one.found_at}",
                    f"nothing was sent; say which disk is the other: understudy-agent relocate {one.path} DISK",
                )
