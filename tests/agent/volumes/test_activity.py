"""Marks tell whether a source was written to, and say when they cannot tell."""

import os
import time
from pathlib import Path

import pytest

from agent.protocol.errors import SourceError
from agent.volumes import activity
from agent.volumes.activity import mark


def test_a_write_right_after_a_mark_is_noticed(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    for _ in range(20):
        before = mark(str(image))
        assert before == mark(str(image))
        with open(image, "r+b") as file:
            file.write(b"x")
        assert mark(str(image)) != before


def test_a_file_written_all_the_time_gives_no_mark_to_rely_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))

    def meanwhile(seconds: float) -> None:
        os.utime(image, (time.time(), time.time()))

    monkeypatch.setattr(activity.time, "sleep", meanwhile)
    assert not mark(str(image)).reliable


def test_another_file_at_the_same_path_is_noticed(tmp_path: Path) -> None:
    image, other = tmp_path / "disk.img", tmp_path / "other.img"
    for path in (image, other):
        path.write_bytes(bytes(4096))
        os.utime(path, (1000, 1000))
    before = mark(str(image))
    other.replace(image)
    assert mark(str(image)) != before


@pytest.mark.parametrize(
    ("stat", "iostats", "reliable"),
    [("9 0 72 1 4 1 32 2 0 3 4 5 6 7 8", "1", True), ("9 0 72 1 4 1 32 2 0 3 4 5 6 7 8", "0", False),
     ("0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", "1", False)],
)  # fmt: skip
def test_a_device_that_does_not_count_is_not_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stat: str, iostats: str, reliable: bool
) -> None:
    disk = tmp_path / "sda"
    (disk / "queue").mkdir(parents=True)
    (disk / "sda1").mkdir()
    (disk / "queue" / "iostats").write_text(iostats + "\n")
    (disk / "sda1" / "partition").write_text("1\n")
    for folder in (disk, disk / "sda1"):
        (folder / "stat").write_text(stat + "\n")
    numbers = {os.makedev(8, 0): disk, os.makedev(8, 1): disk / "sda1"}
    monkeypatch.setattr(activity, "SYSFS_DEVICES", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    for number, folder in numbers.items():
        (tmp_path / "dev" / f"{os.major(number)}:{os.minor(number)}").symlink_to(folder)
        assert activity._device_writes(number).reliable is reliable


def test_a_source_that_is_gone_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.img"):
        mark(str(tmp_path / "gone.img"))
