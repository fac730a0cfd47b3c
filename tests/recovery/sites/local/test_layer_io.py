"""The working state's own writer: what it makes is what QEMU would make."""

from __future__ import annotations

import random
import subprocess
import tempfile
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.protocol.errors import StorageError
from recovery.sites.local import layer_io
from recovery.sites.local.layer_io import LayerIO
from tests.recovery.sites.local.layers import check, create, opened, seen_by_qemu

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
