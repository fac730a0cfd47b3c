from pathlib import Path

import pytest

from agent.tracking.disk import TrackedDisk, Untracked, describe, locate


@pytest.fixture
def sda(tmp_path: Path) -> Path:
    """A disk of 1 GiB with one partition, as sysfs shows them."""
    disk = tmp_path / "sda"
    (disk / "queue").mkdir(parents=True)
    (disk / "mq").mkdir()
    (disk / "sda1").mkdir()
    for name, text in {
        "dev": "8:16",
        "size": "2097152",
        "queue/max_discard_segments": "1",
        "queue/zoned": "none",
        "queue/iostats": "1",
        "sda1/partition": "1",
        "sda1/dev": "8:17",
        "sda1/start": "2048",
        "sda1/size": "4096",
    }.items():
        (disk / name).write_text(text + "\n")
    return disk


def test_a_whole_disk_is_its_own_source(sda: Path) -> None:
    disk = describe(sda)
    assert isinstance(disk, TrackedDisk)
    assert (disk.major, disk.minor, disk.disk_bytes) == (8, 16, 1 << 30)
    assert (disk.source_at, disk.source_bytes) == (0, 1 << 30)


def test_a_partition_is_followed_on_its_disk_at_its_offset(sda: Path) -> None:
    disk = describe(sda / "sda1")
    assert isinstance(disk, TrackedDisk)
    assert (disk.major, disk.minor, disk.disk_bytes) == (8, 16, 1 << 30)
    assert (disk.source_at, disk.source_bytes) == (2048 * 512, 4096 * 512)


def test_a_source_that_grows_or_goes_away_is_noticed(sda: Path) -> None:
    disk = describe(sda / "sda1")
    assert isinstance(disk, TrackedDisk)
    assert not disk.resized()
    (sda / "sda1/size").write_text("8192\n")
    assert disk.resized()
    (sda / "sda1/size").unlink()
    assert disk.resized()


def test_disks_made_of_other_disks_are_not_tracked(sda: Path) -> None:
    (sda / "mq").rmdir()
    disk = describe(sda)
    assert isinstance(disk, Untracked)
    assert "made of other disks" in disk.reason


def test_device_mapper_is_not_tracked_even_with_requests_of_its_own(sda: Path) -> None:
    (sda / "dm").mkdir()
    assert isinstance(describe(sda), Untracked)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("queue/zoned", "host-managed"),
        ("queue/dax", "1"),
        ("queue/iostats", "0"),
        ("size", "0"),
        ("size", str((64 << 40 >> 9) + 1)),
    ],
)
def test_disks_that_raise_doubt_are_not_tracked(sda: Path, name: str, text: str) -> None:
    (sda / name).write_text(text + "\n")
    assert isinstance(describe(sda), Untracked)


def test_a_partition_outside_of_its_disk_is_not_tracked(sda: Path) -> None:
    (sda / "sda1/start").write_text("2097000\n")
    assert isinstance(describe(sda / "sda1"), Untracked)


def test_files_and_other_devices_and_nothing_at_all_are_not_tracked(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    for path in (str(image), "/dev/null", str(tmp_path), str(tmp_path / "gone")):
        found = locate(path)
        assert isinstance(found, Untracked)
        assert path in found.reason
