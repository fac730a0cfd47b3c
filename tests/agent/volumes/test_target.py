"""Target volumes: what a pull may write to, and that it is written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agent.protocol.errors import TargetError
from agent.volumes.source import aligned_buffer
from agent.volumes.target import TargetVolume
from tests.agent.volumes.disks import MIB, Lab, needs_root, run
from tests.patience import PATIENCE_SECONDS


def read(target: TargetVolume, offset: int, length: int) -> bytes:
    buffer = aligned_buffer(length)
    target.read_into(buffer, offset)
    return bytes(buffer)


def test_a_file_that_does_not_exist_is_made_sparse_and_private(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with TargetVolume.open(path, 64 * MIB) as target:
        assert (target.path, target.size_bytes) == (str(path), 64 * MIB)
        assert list(target.data_ranges(0, 64 * MIB)) == []
    assert path.stat().st_size == 64 * MIB
    assert path.stat().st_blocks == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_written_and_zeroed_is_read_back_from_the_medium(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    content = os.urandom(MIB)
    with TargetVolume.open(path, 4 * MIB + 512) as target:
        target.write(512, content)
        target.write(4 * MIB, content[:512])
        target.zero(MIB // 2, 64 << 10)
        target.zero(0, 0)
        target.flush()
        expected = bytearray(4 * MIB + 512)
        expected[512 : 512 + MIB] = content
        expected[4 * MIB :] = content[:512]
        expected[MIB // 2 : MIB // 2 + (64 << 10)] = bytes(64 << 10)
        assert read(target, 0, 4 * MIB + 512) == expected
        assert target.read_back(0, 4 * MIB + 512) == expected
    assert path.read_bytes() == expected


def test_memory_that_the_disk_can_read_from_itself_is_written_as_it_is(tmp_path: Path) -> None:
    memory = aligned_buffer(MIB)
    memory[:] = os.urandom(MIB)
    before = bytes(memory)
    with TargetVolume.open(tmp_path / "disk.img", 4 * MIB) as target:
        target.write(MIB, memory)
        target.write(2 * MIB + 512, memory[: MIB // 2])  # no whole page's place
        target.write(3 * MIB, memory[512 : MIB // 2 + 512])  # no whole page in memory
        assert memory == before
        assert target.read_back(MIB, MIB) == before
        assert bytes(target.read_back(2 * MIB + 512, MIB // 2)) == before[: MIB // 2]
        assert bytes(target.read_back(3 * MIB, MIB // 2)) == before[512 : MIB // 2 + 512]


def test_zeroed_ranges_of_a_file_become_holes(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(4 * MIB))
    with TargetVolume.open(path, 4 * MIB) as target:
        target.zero(MIB, 2 * MIB)
        assert list(target.data_ranges(0, 4 * MIB)) == [(0, MIB), (3 * MIB, MIB)]
        assert list(target.data_ranges(MIB // 2, 3 * MIB)) == [(MIB // 2, MIB // 2), (3 * MIB, MIB // 2)]


def test_a_file_that_is_longer_is_cut_to_the_points_size(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * (2 * MIB))
    with TargetVolume.open(path, MIB) as target:
        assert target.size_bytes == MIB
    assert path.read_bytes() == b"x" * MIB


def test_an_empty_file_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    with TargetVolume.open(path, MIB):
        assert path.stat().st_size == MIB


def test_a_file_that_is_smaller_is_refused_with_both_sizes_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * MIB)
    with pytest.raises(TargetError, match=f"it has {MIB} bytes, the point needs {2 * MIB}"):
        TargetVolume.open(path, 2 * MIB)
    assert path.read_bytes() == b"x" * MIB


def test_what_cannot_be_a_target_is_refused_with_a_way_out(tmp_path: Path) -> None:
    refused = {
        str(tmp_path): "is a directory",
        "/dev/null": "no disk and no file",
        "/dev/no-such-disk": "does not exist",
        str(tmp_path / "no/such/folder.img"): "No such file or directory",
    }
    for path, words in refused.items():
        with pytest.raises(TargetError, match=words) as error:
            TargetVolume.open(path, MIB)
        assert error.value.hint
    assert not Path("/dev/no-such-disk").exists()


def test_two_pulls_onto_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with TargetVolume.open(path, MIB), pytest.raises(TargetError, match="locked by another program"):
        TargetVolume.open(path, MIB)
    TargetVolume.open(path, MIB).close()


@pytest.mark.qemu
def test_an_image_that_qemu_has_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    process = subprocess.Popen(
        ["qemu-io", "-f", "raw", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"read 0 512\n")
        seen = b""
        while b"read 512/512" not in seen:
            received = process.stdout.read(4096)
            assert received, seen
            seen += received
        with pytest.raises(TargetError, match="locked by another program"):
            TargetVolume.open(path, MIB)
    finally:
        process.communicate(b"quit\n", timeout=PATIENCE_SECONDS)


def test_nothing_is_written_outside_the_volume(tmp_path: Path) -> None:
    with TargetVolume.open(tmp_path / "disk.img", MIB) as target:
        for call in (
            lambda: target.write(MIB - 1, b"ab"),
            lambda: target.zero(-1, 1),
            lambda: target.read_into(memoryview(bytearray(2)), MIB - 1),
        ):
            with pytest.raises(ValueError, match="not inside"):
                call()


class TestOnDevices:
    pytestmark = needs_root

    def test_a_device_is_written_zeroed_and_read_back_from_the_medium(self, lab: Lab) -> None:
        image = lab.image(4 * MIB + 512)
        old = os.urandom(4 * MIB + 512)
        image.write_bytes(old)
        content = os.urandom(MIB)
        with TargetVolume.open(lab.attach(image), 4 * MIB + 512) as target:
            assert target.is_device
            assert list(target.data_ranges(0, 4 * MIB + 512)) == [(0, 4 * MIB + 512)]
            assert read(target, 0, 4 * MIB + 512) == old
            target.write(4096 + 512, content)
            target.zero(2 * MIB, MIB)
            target.zero(100, 1)
            expected = bytearray(old)
            expected[4096 + 512 : 4096 + 512 + MIB] = content
            expected[2 * MIB : 3 * MIB] = bytes(MIB)
            expected[100] = 0
            assert target.read_back(0, 4 * MIB + 512) == expected
            assert read(target, 0, 4 * MIB + 512) == expected
        assert image.read_bytes() == expected

    def test_a_larger_device_keeps_what_lies_beyond_the_point(self, lab: Lab) -> None:
        image = lab.image(2 * MIB)
        image.write_bytes(b"x" * (2 * MIB))
        with TargetVolume.open(lab.attach(image), MIB) as target:
            target.zero(0, MIB)
            target.flush()
        assert image.read_bytes() == bytes(MIB) + b"x" * MIB

    def test_a_smaller_device_is_refused(self, lab: Lab) -> None:
        device = lab.attach(lab.image(MIB))
        with pytest.raises(TargetError, match=f"{device} is too small: it has {MIB} bytes"):
            TargetVolume.open(device, MIB + 512)

    def test_a_mounted_device_and_its_image_are_refused(self, lab: Lab) -> None:
        image, device, where = lab.filesystem("ext4")
        for path in (device, str(image)):
            with pytest.raises(TargetError, match=f"mounted at {where}"):
                TargetVolume.open(path, MIB)

    def test_a_device_that_is_a_target_cannot_be_mounted_nor_become_one_again(self, lab: Lab) -> None:
        device = lab.attach(lab.image(16 * MIB))
        run("mkfs.ext4", "-q", device)
        with TargetVolume.open(device, 16 * MIB):
            assert subprocess.run(["mount", device, lab.folder], capture_output=True).returncode != 0
            with pytest.raises(TargetError, match="busy"):
                TargetVolume.open(device, 16 * MIB)

    def test_a_read_only_device_is_refused(self, lab: Lab) -> None:
        with pytest.raises(TargetError, match="is read-only"):
            TargetVolume.open(lab.attach(lab.image(MIB), "--read-only"), MIB)

    def test_the_running_systems_own_disk_is_refused(self) -> None:
        number = Path("/").stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if not name.exists():
            pytest.skip("root is not on a block device here")
        with pytest.raises(TargetError, match="the running system's own disk"):
            TargetVolume.open(f"/dev/{name.resolve().name}", MIB)

    def test_a_full_disk_is_an_error_that_names_the_way_out_and_can_be_repeated(self, lab: Lab) -> None:
        _, _, where = lab.filesystem("ext4")
        path = where / "target.img"
        content = os.urandom(MIB)
        with TargetVolume.open(path, 64 * MIB) as target:
            with pytest.raises(TargetError, match="No space left") as error:
                for offset in range(0, 64 * MIB, MIB):
                    target.write(offset, content)
                target.flush()
            assert "make room" in error.value.hint
        with TargetVolume.open(path, 64 * MIB) as target:
            assert read(target, 0, MIB) == content

    def test_a_medium_that_fails_is_reported_at_the_latest_by_flush(self, lab: Lab) -> None:
        image = lab.image(4 * MIB)
        device = lab.attach(image)
        with TargetVolume.open(device, 4 * MIB) as target:
            os.truncate(image, MIB)
            with pytest.raises(TargetError, match="Input/output error"):
                target.read_into(aligned_buffer(4096), 2 * MIB)
