"""The disks of this machine, and one made of loop devices, as candidates for a protected volume."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.volumes.candidates import candidate, candidates, serial_of
from agent.volumes.source import SourceVolume
from tests.agent.volumes.disks import Lab, run

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices and mounts need root")


def test_what_is_made_of_files_or_disks_is_no_candidate(tmp_path: Path) -> None:
    for found in candidates(tmp_path):
        assert not found.device.startswith(("/dev/loop", "/dev/zram", "/dev/ram", "/dev/dm-", "/dev/md"))
        assert found.size_bytes > 0


@pytest.mark.root
@ROOT_ONLY
def test_a_candidate_knows_what_lies_on_it_and_whether_the_state_folder_does(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    alias = lab.folder / "sda"
    os.mknod(alias, 0o60600, os.stat(device).st_rdev)
    uuid = run("/usr/sbin/blkid", "-p", "-o", "value", "-s", "UUID", device)
    with SourceVolume.open(alias) as source:
        on_it, elsewhere = candidate(source, where), candidate(source, lab.folder)
    assert (on_it.device, on_it.marks, on_it.holds_state) == (device, [f"ext:{uuid}"], True)
    assert not elsewhere.holds_state
    assert on_it.attachment == elsewhere.attachment is not None


def test_the_serial_number_of_a_partition_is_not_its_disks(tmp_path: Path) -> None:
    part = tmp_path / "devices/vda/vda1"
    part.mkdir(parents=True)
    (tmp_path / "devices/vda/serial").write_text("us-0\n")
    (part / "partition").write_text("1\n")
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/254:0").symlink_to(part.parent)
    (tmp_path / "dev/block/254:1").symlink_to(part)
    assert (serial_of(254, 0, tmp_path), serial_of(254, 1, tmp_path)) == ("us-0", "us-0-part1")
