"""Real filesystems, sound and damaged, looked at by their own checkers in a worker; volumes stay as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError
from recovery.drills.filesystems import FilesystemChecks
from recovery.drills.witness import CheckedFilesystem, CheckJob, Soundness
from tests.faults.harness import sum_of
from tests.recovery.repair.images import overlay, run, truncate

pytestmark = [pytest.mark.qemu, pytest.mark.long]

MIB = 1 << 20
MAKERS = {
    "ext4": (32, ("mkfs.ext4", "-q", "-F")),
    "xfs": (320, ("mkfs.xfs", "-q")),
    "btrfs": (128, ("mkfs.btrfs", "-q")),
    "ntfs": (32, ("mkntfs", "-q", "-F", "-f")),
}


def make(folder: Path, name: str, kind: str) -> Path:
    size_mib, command = MAKERS[kind]
    if shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip(f"needs {command[0]}")
    path = folder / name
    truncate(path, size_mib * MIB)
    run(*command, str(path))
    return path


def damage(path: Path, kind: str) -> None:
    with open(path, "r+b") as disk:
        if kind == "ext4":
            run("debugfs", "-w", "-R", "clri <2>", str(path))
        elif kind == "xfs":  # the header that says where free space is
            disk.seek(512)
            disk.write(b"garbage!" * 64)
        elif kind == "btrfs":  # every tree's blocks
            chunks = run("btrfs", "inspect-internal", "dump-tree", "-t", "chunk", str(path)).splitlines()
            for place in [int(line.split()[-1]) for line in chunks if "stripe" in line and "offset" in line][1:]:
                for at in range(place, place + MIB, 16384):
                    disk.seek(at + 200)
                    disk.write(b"X" * 50)
        else:  # the first record of the master file table
            disk.seek(0x30)
            disk.seek(int.from_bytes(disk.read(8), "little") * 4096)
            disk.write(bytes(4096))


def check(folder: Path, *images: Path, stopped: Callable[[], bool] = lambda: False) -> list[CheckedFilesystem]:
    volumes = [str(overlay(image, folder / f"{image.name}.qcow2")) for image in images]
    job = CheckJob(run_id="drill-1", server_id="srv-1", volumes=volumes, stopped=stopped)
    return FilesystemChecks(folder / "scratch", lambda: "tcg")(job)


def test_each_kind_of_filesystem_is_told_sound_or_damaged_and_nothing_is_written(
    worker_parts: None, tmp_path: Path
) -> None:
    images = [make(tmp_path, f"{kind}-sound", kind) for kind in MAKERS]
    for kind in MAKERS:
        images.append(make(tmp_path, f"{kind}-damaged", kind))
        damage(images[-1], kind)
    before = [sum_of(image) for image in images]
    found = check(tmp_path, *images)
    assert [(each.where, each.kind) for each in found] == [
        (f"volume {index}", image.name.partition("-")[0]) for index, image in enumerate(images)
    ]
    assert [each.soundness for each in found] == [Soundness.SOUND] * 4 + [Soundness.DAMAGED] * 4
    assert all(each.said.isprintable() and bool(each.said) == (each.soundness != Soundness.SOUND) for each in found)
    assert [sum_of(image) for image in images] == before
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts loop devices")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_filesystem_that_was_in_use_at_the_points_instant_is_sound(
    kind: str, worker_parts: None, tmp_path: Path
) -> None:
    """Crash-consistent is what points are: the journal is full, files are deleted while they are open."""
    image = make(tmp_path, "image", kind)
    place = tmp_path / "mounted"
    place.mkdir()
    run("mount", "-o", "loop", str(image), str(place))
    try:
        for number in range(100):
            (place / f"file-{number}").write_bytes(os.urandom(30_000))
        with open(place / "deleted", "wb") as held:
            held.write(os.urandom(100_000))
            held.flush()
            os.fsync(held.fileno())
            (place / "deleted").unlink()
            os.sync()
            run("cp", "--sparse=always", str(image), str(tmp_path / "taken"))
    finally:
        run("umount", str(place))
    (found,) = check(tmp_path, tmp_path / "taken")
    assert (found.kind, found.soundness, found.said) == (kind, Soundness.SOUND, "")


def test_what_no_checker_here_knows_is_not_guessed_at(
    worker_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make(tmp_path, "image", "ext4")
    empty = tmp_path / "empty"
    truncate(empty, MIB)
    monkeypatch.setattr("recovery.drills.checkers._found", lambda program: None)
    (found,) = check(tmp_path, empty, image)
    assert found.soundness is Soundness.UNKNOWN
    assert "e2fsck is not installed" in found.said
    assert "apt-get install e2fsprogs" in found.said


def test_a_check_that_is_called_off_ends_and_leaves_nothing(worker_parts: None, tmp_path: Path) -> None:
    image = make(tmp_path, "image", "ext4")
    with pytest.raises(RecoveryError):
        check(tmp_path, image, stopped=lambda: True)
    assert list((tmp_path / "scratch").iterdir()) == []
    left = tmp_path / "scratch" / "drill-0.srv-1"
    left.mkdir()
    FilesystemChecks(tmp_path / "scratch", lambda: "tcg").clear()
    assert not left.exists()
