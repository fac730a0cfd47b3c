"""Files are put into an image with debugfs, on a real filesystem at the image's partition offset."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from demo.building import BuildError
from demo.image import PARTITION_OFFSET_BYTES
from demo.inject import inject, read_back

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
pytestmark = pytest.mark.skipif(shutil.which("debugfs", path=PATH) is None, reason="needs e2fsprogs")
OFFSET = f"offset={PARTITION_OFFSET_BYTES}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(PARTITION_OFFSET_BYTES + (8 << 20))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-E", OFFSET, path, "8192k"], check=True, env={"PATH": PATH})
    return path


def sound(image: Path) -> bool:
    check = subprocess.run(["e2fsck", "-fn", f"{image}?{OFFSET}"], capture_output=True, env={"PATH": PATH})
    return check.returncode == 0


def test_a_file_and_its_folders_are_made_and_read_back(image: Path) -> None:
    content = b'{"url": "https://10.0.2.2:8470"}\n' + bytes(range(256)) * 50
    inject(image, "/etc/understudy/enroll.json", content)
    assert read_back(image, "/etc/understudy/enroll.json") == content
    assert sound(image)


def test_only_root_may_read_it(image: Path) -> None:
    inject(image, "/token", b"secret")
    stat = subprocess.run(
        ["debugfs", "-R", "stat /token", f"{image}?{OFFSET}"], capture_output=True, text=True, env={"PATH": PATH}
    ).stdout
    assert "Type: regular    Mode:  0600" in stat
    assert "User:     0   Group:     0" in stat


def test_a_file_that_is_there_is_replaced(image: Path) -> None:
    inject(image, "/etc/x", b"first, and longer")
    inject(image, "/etc/x", b"second")
    assert read_back(image, "/etc/x") == b"second"
    assert sound(image)


def test_what_is_no_filesystem_gives_an_error_and_not_silence(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(4 << 20))
    with pytest.raises(BuildError, match="could not be written"):
        inject(tmp_path / "disk.raw", "/x", b"content")


def test_a_full_filesystem_gives_an_error(image: Path) -> None:
    with pytest.raises(BuildError, match="could not be written"):
        inject(image, "/big", os.urandom(16 << 20))
