"""Which disk is the protected one: each case is a story of a server room, and none may end with a wrong disk."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.errors import SourceInDoubt
from agent.volumes.candidates import Candidate
from agent.volumes.choice import choose
from agent.volumes.sighting import Sighting

MARKS = ["gpt:8f9d9c39-5b05-4d6c-9f0e-6a2c7b1d0e55", "1 ext:5f1c0de0-0de5-4b1d-9e57-0a4de25beb01"]
OTHER = ["dos:0000abcd"]
HOME, INSTANCE = "home", "instance"
NAMED = "us-0123456789abcdef0"
GIB = 1 << 30
SEEN = Sighting(
    path="/dev/sda",
    machine_id=HOME,
    device="/dev/sda",
    at_path=True,
    size_bytes=GIB,
    marks=MARKS,
    serial="WD-1",
    attachment="boot1 7 8:0",
    holds_state=False,
)


def disk(device: str, marks: list[str] = MARKS, **other: Any) -> Candidate:
    return dataclasses.replace(
        Candidate(device=device, size_bytes=GIB, marks=marks, serial="", attachment=f"boot2 {device}"), **other
    )


def chosen(*disks: Candidate, machine_id: str = HOME, **seen: Any) -> str:
    remembered = dataclasses.replace(SEEN, **seen)
    return choose(remembered, disks, machine_id=machine_id, named=NAMED).device


def refused(*disks: Candidate, machine_id: str = HOME, **seen: Any) -> str:
    """Why; the way out has to be in it, whatever was doubtful."""
    with pytest.raises(SourceInDoubt) as doubt:
        chosen(*disks, machine_id=machine_id, **seen)
    assert "understudy-agent relocate /dev/sda DISK" in str(doubt.value)
    return doubt.value.message


def test_in_an_instance_the_one_disk_with_the_marks_is_it_whatever_its_name() -> None:
    assert chosen(disk("/dev/nvme0n1", OTHER), disk("/dev/nvme1n1"), machine_id=INSTANCE) == "/dev/nvme1n1"


def test_in_an_instance_the_old_name_means_nothing() -> None:
    """Somebody attached a disk that the kernel calls as the volume was called at home."""
    assert chosen(disk("/dev/sda", OTHER), disk("/dev/vda"), machine_id=INSTANCE) == "/dev/vda"
    assert "no disk of this machine bears its marks" in refused(disk("/dev/sda", OTHER), machine_id=INSTANCE)


def test_two_volumes_that_swapped_names_are_told_apart() -> None:
    disks = disk("/dev/vda", OTHER), disk("/dev/vdb", MARKS)
    assert chosen(*disks, machine_id=INSTANCE, path="/dev/vda", device="/dev/vda") == "/dev/vdb"
    assert chosen(*disks, machine_id=INSTANCE, path="/dev/vdb", device="/dev/vdb", marks=OTHER) == "/dev/vda"


def test_of_copies_that_came_with_an_instance_none_is_chosen() -> None:
    assert "/dev/vda and /dev/vdb all bear its marks" in refused(
        disk("/dev/vda"), disk("/dev/vdb"), machine_id=INSTANCE
    )


def test_an_old_name_does_not_decide_between_copies_on_another_machine() -> None:
    refused(disk("/dev/sda"), disk("/dev/sdb"), machine_id=INSTANCE)


def test_the_site_says_which_of_two_equal_disks_is_which() -> None:
    """Both halves of a mirror are protected, and their partition tables are copies of one another."""
    assert chosen(disk("/dev/vda"), disk("/dev/vdb", serial=NAMED), machine_id=INSTANCE) == "/dev/vdb"


def test_the_site_says_which_disk_it_is_of_a_volume_that_nothing_lay_on() -> None:
    disks = disk("/dev/vda"), disk("/dev/vdb", [], serial=NAMED)
    assert chosen(*disks, machine_id=INSTANCE, marks=[]) == "/dev/vdb"
    assert "nothing lay on it" in refused(disk("/dev/vda"), disk("/dev/vdb", []), machine_id=INSTANCE, marks=[])


def test_two_disks_cannot_both_have_the_name_that_the_site_gave() -> None:
    refused(disk("/dev/vda", serial=NAMED), disk("/dev/vdb", serial=NAMED), machine_id=INSTANCE)


def test_without_an_identity_no_disk_without_serial_is_taken_for_one_that_the_site_named() -> None:
    disks = [disk("/dev/vda", OTHER), disk("/dev/vdb")]
    assert choose(SEEN, disks, machine_id=INSTANCE, named=None).device == "/dev/vdb"


def test_the_same_device_of_the_same_boot_is_it_whatever_its_owner_put_on_it() -> None:
    here = disk("/dev/sda", OTHER, attachment=SEEN.attachment, size_bytes=2 * GIB, serial="WD-1")
    assert chosen(here, disk("/dev/sdb")) == "/dev/sda", "its owner had copied it before"


def test_a_lun_that_was_mapped_to_another_disk_under_the_same_name_is_a_doubt() -> None:
    refused(disk("/dev/sda", OTHER, attachment=SEEN.attachment, serial="LUN-2"), serial="LUN-1")


def test_the_same_device_numbers_on_another_machine_are_another_device() -> None:
    assert chosen(disk("/dev/sda", OTHER, attachment=SEEN.attachment), disk("/dev/vda"), machine_id=INSTANCE) == (
        "/dev/vda"
    )


def test_a_disk_that_its_owner_partitioned_anew_before_a_restart_is_still_the_volume() -> None:
    assert chosen(disk("/dev/sda", OTHER, serial="WD-1")) == "/dev/sda"
    assert chosen(disk("/dev/sda", [], serial="WD-1"), disk("/dev/sdb", OTHER)) == "/dev/sda"
    assert chosen(disk("/dev/vda", OTHER), device="/dev/vda", serial="") == "/dev/vda"


def test_a_disk_that_took_the_name_of_one_that_is_gone_is_not_it() -> None:
    assert "another serial number" in refused(disk("/dev/sda", OTHER, serial="USB-1"))
    assert "another size" in refused(disk("/dev/sda", OTHER, serial="WD-1", size_bytes=16 * GIB))


def test_a_volume_that_is_gone_is_nobody_else() -> None:
    refused(disk("/dev/sdb", OTHER))
    refused()


def test_disks_that_changed_names_at_a_restart_are_found() -> None:
    assert chosen(disk("/dev/sda", OTHER, serial="USB-1"), disk("/dev/sdb", serial="WD-1")) == "/dev/sdb"
    assert chosen(disk("/dev/sda", OTHER), disk("/dev/sdb"), serial="") == "/dev/sdb", "as KVM's disks, without serials"


def test_of_copies_at_home_the_one_that_name_and_serial_speak_for_is_it() -> None:
    assert chosen(disk("/dev/sda", serial="WD-1"), disk("/dev/sdb", serial="WD-2")) == "/dev/sda"
    assert chosen(disk("/dev/sda"), disk("/dev/sdb"), serial="") == "/dev/sda"


def test_copies_of_which_name_and_serial_speak_for_different_ones_are_a_doubt() -> None:
    """A LUN and its snapshot that changed names; or a disk that was copied to a new one, which took its place."""
    refused(disk("/dev/sda", serial="WD-2"), disk("/dev/sdb", serial="WD-1"))
    refused(disk("/dev/sdc", serial="WD-2"), disk("/dev/sdb", serial="WD-3"))


def test_one_lun_by_two_ways_is_a_doubt_unless_its_name_is_the_old_one() -> None:
    two = disk("/dev/sdb", serial="WD-1"), disk("/dev/sdc", serial="WD-1")
    refused(*two)
    assert chosen(*two, device="/dev/sdb") == "/dev/sdb"


def test_a_copy_is_not_taken_for_a_volume_that_was_wiped_before_a_restart() -> None:
    """Its serial number tells that the disk at the old name is the same one."""
    assert "has its serial number" in refused(disk("/dev/sda", [], serial="WD-1"), disk("/dev/sdb", serial="WD-2"))


def test_a_disk_that_was_copied_to_a_larger_one_which_took_its_place_is_the_new_one() -> None:
    assert (
        chosen(disk("/dev/sda", serial="WD-2", size_bytes=2 * GIB), disk("/dev/sdb", [], serial="WD-1")) == "/dev/sda"
    )


def test_at_home_after_a_failback_the_old_name_is_right_again() -> None:
    in_instance = {"machine_id": INSTANCE, "device": "/dev/vda", "at_path": False, "serial": NAMED}
    assert chosen(disk("/dev/sda"), disk("/dev/sdb", OTHER), **in_instance) == "/dev/sda"


def test_of_the_old_disk_and_the_one_that_went_home_it_is_the_one_the_server_runs_from() -> None:
    """The damaged disk was left in the machine, and the failback went onto a new one."""
    in_instance = {"machine_id": INSTANCE, "device": "/dev/vda", "holds_state": True}
    assert chosen(disk("/dev/sda"), disk("/dev/sdb", holds_state=True), **in_instance) == "/dev/sdb"
    refused(disk("/dev/sda"), disk("/dev/sdb"), **in_instance)


def test_a_copy_is_not_taken_for_the_disk_that_the_server_runs_from() -> None:
    running = disk("/dev/vdb", ["gpt:made-anew"], holds_state=True)
    assert "does not run from /dev/vda" in refused(disk("/dev/vda"), running, machine_id=INSTANCE, holds_state=True)


def test_every_mark_counts() -> None:
    """Two data disks were partitioned with one script: they share the table's identity, and no more."""
    refused(disk("/dev/vdb", MARKS[:1]), disk("/dev/vdc", [MARKS[0], "1 ext:another"]), machine_id=INSTANCE)


_machines = st.lists(
    st.builds(
        Candidate,
        device=st.sampled_from(["/dev/sda", "/dev/sdb", "/dev/vda", "/dev/vdb"]),
        size_bytes=st.sampled_from([GIB, 2 * GIB]),
        marks=st.sampled_from([MARKS, OTHER, []]),
        serial=st.sampled_from(["", "WD-1", "WD-2", NAMED]),
        attachment=st.sampled_from([None, SEEN.attachment, "boot2 1 8:0", "boot2 2 8:16"]),
        holds_state=st.booleans(),
    ),
    unique_by=lambda disk: disk.device,
)
_memories = st.builds(
    lambda device, marks, serial, attachment, holds_state: dataclasses.replace(
        SEEN, device=device, marks=marks, serial=serial, attachment=attachment, holds_state=holds_state
    ),
    st.sampled_from(["/dev/sda", "/dev/vda"]),
    st.sampled_from([MARKS, []]),
    st.sampled_from(["", "WD-1", "WD-2"]),
    st.sampled_from([None, SEEN.attachment]),
    st.booleans(),
)


@given(_memories, _machines, st.sampled_from([HOME, INSTANCE]), st.randoms())
def test_whatever_a_machine_has_a_disk_is_chosen_for_a_reason_that_no_other_disk_has(
    seen: Sighting, disks: list[Candidate], machine_id: str, shuffling: random.Random
) -> None:
    def choice() -> Candidate | None:
        try:
            return choose(seen, disks, machine_id=machine_id, named=NAMED)
        except SourceInDoubt:
            return None

    found = choice()
    shuffling.shuffle(disks)
    assert choice() == found, "the order in which disks are listed means nothing"
    if found is None:
        return
    at_its_name = machine_id == seen.machine_id and found.device == seen.device
    unchanged = at_its_name and found.attachment is not None and found.attachment == seen.attachment
    if (unchanged and found.serial == seen.serial) or [disk for disk in disks if disk.serial == NAMED] == [found]:
        return
    bearers = [disk for disk in disks if seen.marks and disk.marks == seen.marks]
    if not bearers:
        assert at_its_name and (found.size_bytes, found.serial) == (seen.size_bytes, seen.serial)
    else:
        assert found in bearers
        others = [disk for disk in bearers if disk is not found]
        vouched_for = machine_id == seen.machine_id and found.serial == seen.serial
        runs_from = seen.holds_state and found.holds_state and not any(disk.holds_state for disk in others)
        assert not others or vouched_for or runs_from
    if seen.holds_state and any(disk.holds_state for disk in disks):
        assert found.holds_state
