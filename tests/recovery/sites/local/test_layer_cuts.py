"""The working state's own writer, cut off, or on a disk that fails: the file is right, and has all that was flushed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol.errors import StorageError, StorageFull
from recovery.sites.local import layer_io
from recovery.sites.local.disk_file import DiskFile
from recovery.sites.local.layer_io import LayerIO
from tests.faults.machine import unmount
from tests.recovery.sites.local.layers import check, check_locked, create, opened, seen_by_qemu

REPOSITORY = Path(__file__).parents[4]
WRITES = """
import random, sys
from pathlib import Path
from recovery.sites.local import layer_io
layer_io.WRITE_BACK_BYTES = 1 << 20
path, seed = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
io = layer_io.LayerIO(path)
print("ready", flush=True)
while True:
    for _ in range(rng.randrange(1, 20)):
        length = rng.choice([512, 4096, 65536, 300000])
        offset = rng.randrange(io.size_bytes - length)
        if rng.random() < 0.2:
            io.zero(offset, length)
        else:
            io.write(offset, rng.randbytes(length))
    io.flush()
    print("flushed", flush=True)
"""

WRITES_IN_THREADS = """
import random, sys, threading
from pathlib import Path
from recovery.sites.local import layer_io
layer_io.WRITE_BACK_BYTES = 1 << 20
io = layer_io.LayerIO(Path(sys.argv[1]))
def work(number):
    rng = random.Random(number)
    while True:
        block = rng.randrange(96)
        io.write((number * 96 + block) << 16, bytes([number + 1]) * 65536)
        if rng.random() < 0.1:
            io.zero((number * 96 + rng.randrange(96)) << 16, 65536)
        if rng.random() < 0.05:
            io.flush()
for number in range(4):
    threading.Thread(target=work, args=(number,)).start()
print("ready", flush=True)
"""


@pytest.mark.parametrize("cluster", [512, 65_536])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cut_off_before_any_write_the_file_is_right_and_has_all_that_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: int, seed: int
) -> None:
    """The file as it is before each write to it is what a kill would leave."""
    path, left = tmp_path / "head.qcow2", tmp_path / "left.qcow2"
    size = 3 << 20
    create(path, size, cluster_bytes=cluster)
    monkeypatch.setattr(layer_io, "AHEAD_BYTES", 1 << 20)
    rng = random.Random(seed)
    flushed, present = bytearray(size), bytearray(size)
    touched: set[int] = set()  # bytes written since the flush may be old or new
    looks = 0

    def look() -> None:
        nonlocal looks
        if rng.random() < (0.3 if cluster == 512 else 0.8):
            looks += 1
            shutil.copyfile(path, left)
            check(left, leaks=True)
            found = seen_by_qemu(left)
            for at in range(0, size, 512):
                assert found[at : at + 512] == flushed[at : at + 512] or at // 512 in touched, at
            with opened(left) as again:
                assert again.read(0, size) == found
                again.write(0, b"after")
            check(left)

    def before(name: str) -> None:
        real = getattr(DiskFile, name)

        def looked_at(self: DiskFile, *arguments: object) -> object:
            if self.path == path:
                look()
            return real(self, *arguments)

        monkeypatch.setattr(DiskFile, name, looked_at)

    for name in ("write", "write_cached", "punch", "sync", "resize"):
        before(name)
    io = LayerIO(path)
    for turn in range(1, 14):
        offset, length = rng.randrange(size), rng.choice([512, 4096, 70_000, 600_000])
        length = min(length, size - offset)
        touched |= set(range(offset // 512, (offset + length - 1) // 512 + 1))
        if turn % 4 == 0:
            io.zero(offset, length)
            present[offset : offset + length] = bytes(length)
        else:
            io.write(offset, bytes([turn]) * length)
            present[offset : offset + length] = bytes([turn]) * length
        if turn % 5 == 0:
            io.flush()
            flushed[:] = present
            touched.clear()
    io.close()
    flushed[:] = present
    touched.clear()
    check(path)
    assert seen_by_qemu(path) == present
    assert looks > 5


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_writer_leaves_a_right_file_with_all_that_it_had_flushed(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 24 << 20)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(path), str(seed)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).random() * 0.6)
    writer.kill()
    writer.wait()
    flushes = writer.stdout.read().count("flushed")
    writer.stdout.close()
    check(path, leaks=True)
    found = seen_by_qemu(path)
    flushed, touched = replayed(seed, flushes, 24 << 20)
    for at in range(0, len(found), 512):
        assert found[at : at + 512] == flushed[at : at + 512] or at // 512 in touched, at
    with opened(path) as io:
        assert io.read(0, len(found)) == found
        check_locked(path)
    check(path)
    assert path.stat().st_size < 32 << 20


@pytest.mark.parametrize("seed", range(4))
def test_killed_while_several_threads_write_each_block_is_old_or_new(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 24 << 20)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES_IN_THREADS, str(path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).random() * 0.5)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    check(path, leaks=True)
    found = seen_by_qemu(path)
    for block in range(384):
        assert set(found[block << 16 : (block + 1) << 16]) in ({0}, {block // 96 + 1}), block
    with opened(path) as io:
        assert io.read(0, 24 << 20) == found
    check(path)


def replayed(seed: int, flushes: int, size: int) -> tuple[bytes, set[int]]:
    """What `WRITES` had flushed, and the sectors that it may have written to since."""
    rng = random.Random(seed)
    content, flushed, touched = bytearray(size), b"", set[int]()
    for turn in range(flushes + 2):
        if turn <= flushes:
            flushed = bytes(content)
            touched = set()
        for _ in range(rng.randrange(1, 20)):
            length = rng.choice([512, 4096, 65536, 300000])
            offset = rng.randrange(size - length)
            if rng.random() < 0.2:
                content[offset : offset + length] = bytes(length)
            else:
                content[offset : offset + length] = rng.randbytes(length)
            touched |= set(range(offset // 512, (offset + length - 1) // 512 + 1))
    return flushed, touched


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small filesystem")
    image, folder = tmp_path / "small.img", tmp_path / "small"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    yield folder
    unmount(folder)


@pytest.mark.root
def test_a_full_disk_is_told_and_nothing_that_was_flushed_is_lost(small_disk: Path) -> None:
    path = small_disk / "head.qcow2"
    create(path, 64 << 20)
    first = os.urandom(4 << 20)
    io = LayerIO(path)
    io.write(0, first)
    io.flush()
    with pytest.raises(StorageFull):
        for offset in range(4 << 20, 64 << 20, 1 << 20):
            io.write(offset, os.urandom(1 << 20))
    io.close()
    check(path, leaks=True)
    with opened(path) as io:
        assert io.read(0, 4 << 20) == first
        io.zero(4 << 20, 60 << 20)
        io.flush()
        io.write(4 << 20, first)
        io.flush()
    check(path)


def test_what_the_disk_once_failed_to_keep_is_never_called_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells a failure once, and then has dropped what it could not write."""
    path = tmp_path / "head.qcow2"
    create(path, 1 << 20)
    io = LayerIO(path)
    io.write(0, b"x")

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(StorageError):
            io.flush()
    with pytest.raises(StorageError):
        io.flush()
    io.close()
