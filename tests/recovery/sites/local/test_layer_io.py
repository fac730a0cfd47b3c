"""The working state's own writer: what it makes is what QEMU would make, whenever it is cut off."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.protocol.errors import Conflict, StorageError, StorageFull
from recovery.sites.local import layer_io
from recovery.sites.local.disk_file import DiskFile
from recovery.sites.local.layer_io import LayerIO
from tests.faults.harness import unmount

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


def create(path: Path, size_bytes: int, *, cluster_bytes: int = 65_536, backing: Path | None = None) -> None:
    on_top = [] if backing is None else ["-F", "qcow2", "-b", backing.name]
    options = ["-o", f"cluster_size={cluster_bytes}"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, *on_top, path, str(size_bytes)], check=True)


def check(path: Path, *, leaks: bool = False) -> None:
    """QEMU finds nothing wrong; `leaks`: but for space that is lost."""
    done = subprocess.run(["qemu-img", "check", "--output=json", path], capture_output=True, text=True, check=False)
    assert done.returncode in ((0, 3) if leaks else (0,)), done.stdout + done.stderr


def seen_by_qemu(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[LayerIO]:
    with contextlib.closing(LayerIO(path)) as io:
        yield io


# --- any sequence of writes ----------------------------------------------------------------------------------------

places = st.integers(min_value=0, max_value=400_000)
lengths = st.sampled_from([1, 511, 512, 4096, 10_000, 65_536, 70_000, 200_000])
sizes = st.sampled_from([512, 65_536 - 512, 65_536, 100_352, 200_192, 327_680])
steps = st.lists(st.tuples(st.sampled_from(["write", "zero", "flush", "reopen"]), places, lengths), max_size=12)


class Model:
    """The bytes that the layer should show, and the same commands for qemu-io."""

    def __init__(self, content: bytes, size_bytes: int) -> None:
        self.content = bytearray(content[:size_bytes].ljust(size_bytes, b"\0"))
        self.commands: list[str] = []

    def put(self, offset: int, length: int, byte: int) -> None:
        self.content[offset : offset + length] = bytes([byte]) * length
        self.commands += ["-c", f"write -z {offset} {length}" if not byte else f"write -P {byte} {offset} {length}"]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(sizes, st.none() | sizes, st.sampled_from([512, 4096, 65_536]), steps)
def test_any_sequence_of_writes_gives_what_plain_bytes_and_qemu_give(
    size: int, backing: int | None, cluster: int, doing: list[tuple[str, int, int]]
) -> None:
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        folder = Path(name)
        below: Path | None = None
        if backing is not None:
            below = folder / "below.qcow2"
            create(below, backing)
            with opened(below) as io:
                io.write(0, b"\xbb" * backing)
                io.flush()
        ours, theirs = folder / "ours.qcow2", folder / "theirs.qcow2"
        for path in (ours, theirs):
            create(path, size, cluster_bytes=cluster, backing=below)
        model = Model(b"\xbb" * (backing or 0), size)
        io = LayerIO(ours)
        try:
            for number, (what, place, length) in enumerate(doing, 1):
                offset = place % size
                length = min(length, size - offset)
                if what == "write":
                    io.write(offset, bytes([number]) * length)
                    model.put(offset, length, number)
                elif what == "zero":
                    io.zero(offset, length)
                    model.put(offset, length, 0)
                elif what == "flush":
                    io.flush()
                else:
                    io.close()
                    io = LayerIO(ours)
                assert io.read(0, size) == model.content
        finally:
            io.close()
        check(ours)
        assert seen_by_qemu(ours) == model.content
        subprocess.run(["qemu-io", "-f", "qcow2", *model.commands, theirs], check=True, capture_output=True)
        subprocess.run(["qemu-img", "compare", "-q", ours, theirs], check=True)


def test_qemu_goes_on_where_we_stopped_and_we_where_it_did(tmp_path: Path) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 4 << 20)
    expected = bytearray(4 << 20)
    rng = random.Random(5)
    for turn in range(1, 9):
        offset, length = rng.randrange(3 << 20), rng.choice([512, 65_536, 300_000])
        if turn % 2:
            with opened(path) as io:
                io.write(offset, bytes([turn]) * length)
                io.zero(offset + 1000, length // 4)
        else:
            commands = ["-c", f"write -P {turn} {offset} {length}", "-c", f"write -z {offset + 1000} {length // 4}"]
            subprocess.run(["qemu-io", "-f", "qcow2", *commands, path], check=True, capture_output=True)
        expected[offset : offset + length] = bytes([turn]) * length
        expected[offset + 1000 : offset + 1000 + length // 4] = bytes(length // 4)
        check(path)
        with opened(path) as io:
            assert io.read(0, 4 << 20) == expected
    assert seen_by_qemu(path) == expected


@pytest.mark.parametrize("cluster", [512, 1024])
def test_the_tables_of_refcounts_grow_with_the_file(tmp_path: Path, cluster: int) -> None:
    """With the smallest clusters QEMU has, some MiB outgrow them; with ours it takes 16 TiB."""
    path = tmp_path / "head.qcow2"
    size = 40 << 20
    create(path, size, cluster_bytes=cluster)
    content = random.Random(1).randbytes(size)
    with opened(path) as io:
        for offset in range(0, size, 1 << 20):
            io.write(offset, content[offset : offset + (1 << 20)])
            if offset == 12 << 20:
                io.flush()
    check(path)
    assert seen_by_qemu(path) == content
    with opened(path) as io:
        io.zero(0, 1 << 20)
        io.write(100, b"x")
    check(path)


def test_threads_that_write_to_one_cluster_keep_each_others_part(tmp_path: Path) -> None:
    below, path = tmp_path / "below.qcow2", tmp_path / "head.qcow2"
    create(below, 1 << 20)
    with opened(below) as io:
        io.write(0, b"-" * (1 << 20))
    create(path, 1 << 20, backing=below)
    with opened(path) as io:

        def work(number: int) -> None:
            for cluster in range(16):
                io.write(cluster * 65_536 + number * 4096, bytes([number + 1]) * 4000)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one = b"".join(bytes([number + 1]) * 4000 + b"-" * 96 for number in range(8))
        assert io.read(0, 1 << 20) == (one + b"-" * (65_536 - len(one))) * 16
    check(path)


def test_more_tables_than_are_kept_in_memory_are_written_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head.qcow2"
    size = 20 << 30
    create(path, size)
    with opened(path) as io:
        for turn in (1, 2):
            for number in range(40):
                io.write(number * (512 << 20) + turn * 70_000, bytes([number + turn]) * 65_536)
        assert len(io._clusters._tables) <= 16
        for turn in (1, 2):
            for number in range(40):
                assert io.read(number * (512 << 20) + turn * 70_000, 5) == bytes([number + turn]) * 5
    check(path)


def test_a_range_of_any_length_is_made_zero_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks grow and shrink by TiBs."""
    below, path, size = tmp_path / "below.qcow2", tmp_path / "head.qcow2", 32 << 30
    create(below, size)
    with opened(below) as io:
        io.write(0, b"x" * 70_000)
        io.write(size - 70_000, b"x" * 70_000)
    create(path, size, backing=below)
    monkeypatch.setattr(layer_io, "AHEAD_BYTES", 1 << 20)
    with opened(path) as io:
        tracemalloc.start()
        io.zero(1000, size - 2000)
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most_bytes < 4 << 20
        assert path.stat().st_size > io._refcounts.end << 16, "so that it is known for one that was not closed"
        assert io.read(0, 70_000) == b"x" * 1000 + bytes(69_000)
        assert io.read(size - 70_000, 70_000) == bytes(69_000) + b"x" * 1000
    check(path)


def test_a_volume_that_is_closed_refuses_and_closes_once(tmp_path: Path) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 1 << 20)
    closed: list[bool] = []
    io = LayerIO(path, on_close=lambda: closed.append(True))
    io.close()
    io.close()
    assert closed == [True]
    for refused in (lambda: io.read(0, 1), lambda: io.write(0, b"x"), lambda: io.zero(0, 1), io.flush):
        with pytest.raises(StorageError, match="closed"):
            refused()


# --- cut off -------------------------------------------------------------------------------------------------------


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


def check_locked(path: Path) -> None:
    refused = subprocess.run(["qemu-img", "resize", "-q", path, "+1M"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "lock" in refused.stderr


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


# --- locks, damage, full disks -------------------------------------------------------------------------------------


def test_a_file_that_is_written_to_is_refused_to_qemu_and_to_a_second_writer(tmp_path: Path) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 1 << 20)
    with opened(path):
        check_locked(path)
        with pytest.raises(Conflict, match="another process"):
            LayerIO(path)
        shown = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], capture_output=True, check=True)
        assert json.loads(shown.stdout)["virtual-size"] == 1 << 20
    subprocess.run(["qemu-img", "resize", "-q", path, "+1M"], check=True)


def test_a_file_that_qemu_writes_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 1 << 20)
    other = subprocess.Popen(["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(b"write 0 512\n")
        other.stdin.flush()
        while b"wrote" not in other.stdout.readline():
            pass
        with pytest.raises(Conflict, match="another process"):
            LayerIO(path)
    finally:
        other.communicate(b"quit\n")
    LayerIO(path).close()


def damaged_features(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(72)
        file.write((2).to_bytes(8, "big"))  # marked as corrupt


def lost_refcounts(path: Path) -> None:
    """As if the block of refcounts had rotted: what lies behind seems to be free."""
    with path.open("r+b") as file:
        file.seek(2 * 65_536 + 10)
        file.write(bytes(65_536 - 10))


@pytest.mark.parametrize("damage", [damaged_features, lost_refcounts])
def test_a_damaged_file_is_refused_and_stays_as_it_is(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 1 << 20)
    with opened(path) as io:
        io.write(0, b"x" * (1 << 20))
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StorageError):
        LayerIO(path)
    assert path.read_bytes() == before


def test_clusters_that_are_compressed_are_refused(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "head.qcow2"
    raw.write_bytes(b"x" * (1 << 20))
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    with opened(path) as io, pytest.raises(StorageError, match="compressed"):
        io.write(0, b"y" * 512)


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
