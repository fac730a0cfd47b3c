"""Source volumes, on image files and real loop devices."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.protocol.errors import NotADisk, SourceError, SourceReadError, SourceResized
from agent.volumes.source import SourceVolume, aligned_buffer
from tests.agent.volumes.disks import MIB, Lab, needs_root, run


def read_all(source: SourceVolume) -> bytes:
    buffer = aligned_buffer(source.size_bytes)
    source.read_into(buffer, 0)
    return bytes(buffer)


def test_an_image_file_reads_as_its_bytes(tmp_path: Path) -> None:
    content = os.urandom(3 * MIB + 512)
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    with SourceVolume.open(path) as source:
        assert (source.path, source.size_bytes, source.is_device) == (str(path), len(content), False)
        assert read_all(source) == content
        tail = memoryview(bytearray(700))
        source.read_into(tail, len(content) - 700)
        assert bytes(tail) == content[-700:]


def test_many_threads_read_one_source_at_once(tmp_path: Path) -> None:
    content = os.urandom(4 * MIB)
    path = tmp_path / "disk.img"
    path.write_bytes(content)

    def read(offset: int) -> bool:
        buffer = memoryview(bytearray(64 << 10))
        source.read_into(buffer, offset)
        return bytes(buffer) == content[offset : offset + len(buffer)]

    with SourceVolume.open(path) as source, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(0, len(content), 64 << 10)))


def test_a_symlink_is_followed_at_open_and_stays_the_identity(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(name.encode().ljust(512))
    link = tmp_path / "disk"
    link.symlink_to("old")
    with SourceVolume.open(link) as source:
        link.unlink()
        link.symlink_to("new")
        assert source.path == str(link)
        assert read_all(source).startswith(b"old")
    with SourceVolume.open(link) as source:
        assert read_all(source).startswith(b"new")


def test_the_holes_of_an_image_are_not_among_its_data(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
        for offset in (0, 8 * MIB, 63 * MIB):
            os.pwrite(file.fileno(), b"x" * 4096, offset)
    with SourceVolume.open(path) as source:
        assert list(source.data_ranges()) == [(0, 4096), (8 * MIB, 4096), (63 * MIB, 4096)]


def test_an_image_that_is_one_hole_has_no_data(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, MIB)
    with SourceVolume.open(path) as source:
        assert list(source.data_ranges()) == []
        assert read_all(source) == bytes(MIB)


@pytest.mark.parametrize(("size_bytes", "verb"), [(2 * MIB, "grew"), (512, "shrank")])
def test_an_image_that_changes_its_size_is_noticed(tmp_path: Path, size_bytes: int, verb: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    with SourceVolume.open(path) as source:
        source.check_unchanged()
        os.truncate(path, size_bytes)
        with pytest.raises(SourceResized, match=f"{verb} from {MIB} to {size_bytes} bytes"):
            source.check_unchanged()


def test_reading_beyond_the_new_end_of_a_shrunk_image_says_that_it_shrank(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    with SourceVolume.open(path) as source:
        os.truncate(path, 512)
        with pytest.raises(SourceResized):
            read_all(source)


def test_what_is_no_disk_is_refused_in_clear_words(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "odd").write_bytes(bytes(513))
    (tmp_path / "image.qcow2").write_bytes(b"QFI\xfb".ljust(512))
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    refused = {
        "missing": "No such file",
        "empty/below": "Not a directory",
        "loop": "symbolic links",
        ".": "is a directory",
        "empty": "is an empty file",
        "odd": "has 513 bytes, which is not a whole number of 512-byte sectors",
        "fifo": "neither a block device nor a file",
        "image.qcow2": "is a qcow2 image",
        "/dev/null": "is a character device",
    }
    for name, words in refused.items():
        with pytest.raises(NotADisk, match=words) as error:
            SourceVolume.open(tmp_path / name)
        assert error.value.hint


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_who_may_not_read_a_disk_is_told_to_be_root(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    path.chmod(0)
    child = os.fork()
    if child == 0:
        try:
            os.chdir(tmp_path)
            os.setgid(65534)
            os.setuid(65534)
            SourceVolume.open("disk.img")
        except SourceError as error:
            os._exit(0 if error.hint == "run as root" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_closed_source_lets_go_of_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    source = SourceVolume.open(path)
    before = len(os.listdir("/proc/self/fd"))
    source.close()
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


class TestOnDevices:
    pytestmark = needs_root

    @pytest.mark.parametrize("size_bytes", [4 * MIB, 4 * MIB + 512, 4 * MIB + 3 * 512])
    def test_a_device_of_any_number_of_sectors_reads_to_its_very_end(self, lab: Lab, size_bytes: int) -> None:
        image = lab.image(size_bytes)
        content = os.urandom(size_bytes)
        image.write_bytes(content)
        with SourceVolume.open(lab.attach(image)) as source:
            assert source.size_bytes == size_bytes
            assert source.is_device
            assert read_all(source) == content
            assert list(source.data_ranges()) == [(0, size_bytes)]

    def test_a_device_reads_at_any_offset_into_any_buffer(self, lab: Lab) -> None:
        image = lab.image(MIB + 512)
        content = os.urandom(MIB + 512)
        image.write_bytes(content)
        with SourceVolume.open(lab.attach(image)) as source:
            for offset, length in [(0, 1), (511, 2), (4095, 8194), (MIB, 512), (MIB + 500, 12), (512, MIB)]:
                buffer = memoryview(bytearray(length + 1))[1:]
                source.read_into(buffer, offset)
                assert bytes(buffer) == content[offset : offset + length]

    def test_a_mounted_disk_is_read_past_its_stale_cache(self, lab: Lab) -> None:
        _, device, where = lab.filesystem("ext4")
        Path(device).read_bytes()  # fills the device's page cache, which a mounted filesystem does not keep up to date
        marker = os.urandom(4096)
        with open(where / "marker", "wb") as file:
            file.write(marker)
            file.flush()
            os.fsync(file.fileno())
        with SourceVolume.open(device) as source:
            assert marker in read_all(source)

    @pytest.mark.parametrize("direct", ["on", "off"])
    def test_an_image_with_a_mounted_loop_device_on_top_is_read_as_it_is(self, lab: Lab, direct: str) -> None:
        image = lab.image(16 * MIB)
        device = lab.attach(image, f"--direct-io={direct}")
        run("mkfs.ext4", "-q", device)
        where = lab.mount(device, "disk")
        with SourceVolume.open(image) as source:
            read_all(source)  # the image's pages are cached from here on
            for _ in range(5):
                marker = os.urandom(4096)
                with open(where / "marker", "wb") as file:
                    file.write(marker)
                    file.flush()
                    os.fsync(file.fileno())
                assert marker in read_all(source)

    def test_a_disk_that_is_mounted_read_only_is_read_all_the_same(self, lab: Lab) -> None:
        _, device, where = lab.filesystem("ext4")
        run("mount", "-o", "remount,ro", where)
        with SourceVolume.open(device) as source:
            assert len(read_all(source)) == source.size_bytes

    def test_a_read_error_names_the_path_and_the_offset(self, lab: Lab) -> None:
        image = lab.image(4 * MIB)
        device = lab.attach(image)
        os.truncate(image, 2 * MIB)  # the device keeps its size; what lay beyond cannot be read any more
        with SourceVolume.open(device) as source:
            buffer = aligned_buffer(64 << 10)
            source.read_into(buffer, 0)
            with pytest.raises(SourceReadError, match=f"{device} .* at offset {3 * MIB}: Input/output error"):
                source.read_into(buffer, 3 * MIB)

    def test_a_device_that_grows_is_noticed(self, lab: Lab) -> None:
        image = lab.image(MIB)
        device = lab.attach(image)
        with SourceVolume.open(device) as source:
            os.truncate(image, 2 * MIB)
            run("losetup", "--set-capacity", device)
            with pytest.raises(SourceResized, match="grew"):
                source.check_unchanged()

    def test_a_device_without_a_medium_is_no_disk(self) -> None:
        with pytest.raises(NotADisk, match="no medium"):
            SourceVolume.open(run("losetup", "--find"))  # the first that is attached to nothing


def test_opening_a_source_needs_nothing_outside_the_base_install(tmp_path: Path) -> None:
    code = (
        "import sys, agent.volumes.source, agent.volumes.target, agent.consistency.freeze\n"
        "assert not {'asyncio', 'aiohttp', 'sqlalchemy'} & set(sys.modules), sorted(sys.modules)"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-B", "-c", code], check=True, cwd=root, timeout=240)
