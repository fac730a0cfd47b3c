"""Protected disks that are somewhere else by now: loop devices here stand for the disks of a machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import sources
from agent.protocol.errors import NotADisk, SourceInDoubt, UsageError
from agent.sources import open_protected, places, protect, relocate
from agent.state import State
from agent.volumes import source
from agent.volumes.candidates import Candidate, candidate
from agent.volumes.source import SourceVolume
from tests.agent.volumes.disks import MIB, Lab, lab, needs_root, run

__all__ = ["lab"]
pytestmark = needs_root


class Machine:
    """Loop devices below names of their own, and an agent that takes them for the disks of its machine."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        self.state = State(lab.folder / "state")
        self.state.make()
        self.disks: list[str] = []
        self._monkeypatch = monkeypatch
        self.is_called("home")

    def is_called(self, machine_id: str) -> None:
        self._monkeypatch.setattr(sources, "machine_id", lambda: machine_id)

    def disk(self, name: str, *, of: Path | None = None) -> str:
        """A disk with a table and a filesystem of its own; a copy `of` another's image."""
        image = self.lab.image(16 * MIB, name)
        if of is not None:
            subprocess.run(["cp", of, image], check=True)
        else:
            subprocess.run(["/usr/sbin/sfdisk", "-q", image], input="label: gpt\n,8M\n", text=True, check=True)
        return self.attach(image)

    def attach(self, image: Path) -> str:
        device = self.lab.attach(image)
        self.disks.append(device)
        return device

    def scan(self, state_folder: Path) -> list[Candidate]:
        found = []
        for device in self.disks:
            with SourceVolume.open(device) as opened:
                found.append(candidate(opened, state_folder))
        return found

    def protect(self, *paths: str) -> None:
        protect(self.state, list(paths), self.scan)

    def opened(self) -> list[tuple[str, str, str | None]]:
        """(path, where it was opened, found_at) of each protected volume, as a push opens them."""
        with contextlib.ExitStack() as resources:
            found = open_protected(self.state, self.state.protected(), resources, self.scan)
            return [(one.path, one.source.path, one.found_at) for one in found]

    def move(self, path: str, device: str) -> None:
        """As after a boot on another machine: what was `path` is not there any more."""
        os.unlink(path)
        self.is_called("instance")
        assert device in self.disks


@pytest.fixture
def machine(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    yield Machine(lab, monkeypatch)


@pytest.fixture
def named(machine: Machine) -> Callable[[str, str], str]:
    """A device node of its own for a loop device: a name that can go away, as kernels' names do."""

    def make(name: str, device: str) -> str:
        path = str(machine.lab.folder / name)
        os.mknod(path, 0o60600, os.stat(device).st_rdev)
        return path

    return make


def test_a_volume_whose_name_is_gone_is_found_by_what_lies_on_it(
    machine: Machine, named: Callable[[str, str], str]
) -> None:
    loop = machine.disk("one")
    machine.disk("two")
    path = named("sda", loop)
    machine.protect(path)
    assert machine.opened() == [(path, path, None)]
    machine.move(path, loop)
    assert machine.opened() == [(path, loop, loop)]
    assert machine.state.protected() == [path], "the path is its identity, and stays"
    (place,) = places(machine.state, machine.scan)
    assert (place.found_at, place.size_bytes, place.problem) == (loop, 16 * MIB, "")
    path = named("sda", loop)
    machine.is_called("home")
    assert machine.opened() == [(path, path, None)], "at home the old name is right again"


def test_a_foreign_disk_that_has_the_name_is_not_opened(machine: Machine, named: Callable[[str, str], str]) -> None:
    loop, foreign = machine.disk("one"), machine.disk("two")
    path = named("sda", loop)
    machine.protect(path)
    machine.move(path, loop)
    named("sda", foreign)
    assert machine.opened() == [(path, loop, loop)]
    assert machine.opened() == [(path, loop, loop)], "and it is not believed later on either"
    assert not machine.state.seen()[path].at_path


def test_of_copies_none_is_opened_and_nothing_is_forgotten(machine: Machine, named: Callable[[str, str], str]) -> None:
    loop = machine.disk("one")
    path = named("sda", loop)
    machine.protect(path)
    copy = machine.disk("copy", of=machine.lab.folder / "one")
    machine.move(path, loop)
    before = machine.state.seen()
    with pytest.raises(SourceInDoubt, match=f"{loop} and {copy} all bear its marks"):
        machine.opened()
    assert machine.state.seen() == before
    (place,) = places(machine.state, machine.scan)
    assert (place.device, place.size_bytes) == (None, 16 * MIB)
    assert "relocate" in place.problem


def test_the_operators_word_ends_the_doubt(machine: Machine, named: Callable[[str, str], str]) -> None:
    loop = machine.disk("one")
    path = named("sda", loop)
    machine.protect(path)
    machine.disk("copy", of=machine.lab.folder / "one")
    machine.move(path, loop)
    relocate(machine.state, path, loop)
    assert machine.opened() == [(path, loop, loop)]
    with pytest.raises(UsageError, match="is not protected"):
        relocate(machine.state, loop, loop)
    with pytest.raises(NotADisk, match="image file"):
        relocate(machine.state, path, str(machine.lab.folder / "one"))


def test_what_its_owner_partitioned_anew_is_still_the_volume(
    machine: Machine, named: Callable[[str, str], str]
) -> None:
    loop = machine.disk("one")
    path = named("sda", loop)
    machine.protect(path)
    machine.disk("copy", of=machine.lab.folder / "one")
    before = machine.state.seen()[path].marks
    run("/usr/sbin/sfdisk", "-q", "--no-reread", "--disk-id", loop, "8f9d9c39-5b05-4d6c-9f0e-6a2c7b1d0e55")
    assert machine.opened() == [(path, path, None)], "though another disk has what it had"
    assert machine.state.seen()[path].marks != before


def test_a_kernel_that_does_not_number_its_disks_is_served_by_what_lies_on_them(
    machine: Machine, named: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "disk_sequence", lambda descriptor: None)
    loop, other = machine.disk("one"), machine.disk("two")
    path = named("sda", loop)
    machine.protect(path)
    assert machine.state.seen()[path].attachment is None
    assert machine.opened() == [(path, path, None)]
    os.unlink(path)
    named("sda", other)
    assert machine.opened() == [(path, loop, loop)]


def test_a_link_may_lead_elsewhere_at_the_next_push(machine: Machine) -> None:
    one, two = machine.disk("one"), machine.disk("two")
    link = machine.lab.folder / "volume"
    link.symlink_to(one)
    machine.protect(str(link))
    link.unlink()
    link.symlink_to(two)
    assert machine.opened() == [(str(link), str(link), None)]
    assert machine.state.seen()[str(link)].device == two
    link.unlink()
    assert machine.opened() == [(str(link), two, two)], "a link that is gone says nothing, but the disk is here"


def test_a_link_that_travelled_with_the_disk_means_nothing_on_another_machine(machine: Machine) -> None:
    one, two = machine.disk("one"), machine.disk("two")
    link = machine.lab.folder / "volume"
    link.symlink_to(one)
    machine.protect(str(link))
    machine.is_called("instance")
    link.unlink()
    link.symlink_to(two)  # what it named at home is another disk here
    assert machine.opened() == [(str(link), one, one)]
    assert machine.opened() == [(str(link), one, one)]


def test_two_volumes_are_never_one_disk(machine: Machine, named: Callable[[str, str], str]) -> None:
    loop = machine.disk("one")
    path, other = named("sda", loop), str(machine.lab.folder / "link")
    os.symlink(loop, other)
    machine.protect(path, other)
    machine.move(path, loop)
    machine.is_called("home")
    with pytest.raises(SourceInDoubt, match="both seem to be"):
        machine.opened()


def test_protecting_one_disk_more_keeps_what_is_known_of_the_others(
    machine: Machine, named: Callable[[str, str], str]
) -> None:
    loop, more = machine.disk("one"), machine.disk("two")
    path = named("sda", loop)
    machine.protect(path)
    machine.move(path, loop)
    machine.protect(path, more)
    assert machine.opened() == [(path, loop, loop), (more, more, None)]


def test_image_files_are_what_their_path_says(machine: Machine) -> None:
    image = machine.lab.image(1 * MIB, "disk.raw")
    machine.protect(str(image))
    machine.is_called("instance")
    assert machine.opened() == [(str(image), str(image), None)]
    assert machine.state.seen() == {}


def test_a_state_folder_of_before_is_believed_once(machine: Machine) -> None:
    """An agent that is older remembered nothing: each volume is what its path says."""
    loop = machine.disk("one")
    machine.state.protect([loop])
    assert machine.opened() == [(loop, loop, None)]
    assert machine.state.seen()[loop].marks


def test_a_damaged_memory_is_named_with_the_way_out(machine: Machine) -> None:
    loop = machine.disk("one")
    machine.protect(loop)
    (machine.state.folder / "seen.json").write_text('{"volumes": [{}]}')
    with pytest.raises(UsageError, match=r"seen\.json is damaged.*remove that file"):
        machine.opened()
