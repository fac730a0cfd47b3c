"""Reading recovery points straight from their files: the same bytes as QEMU's, wherever they lie."""

from __future__ import annotations

import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.protocol.errors import Conflict, NotFound, StorageError
from recovery.sites.contract import Extent
from recovery.sites.local import LocalSite, snapshot_io
from tests.recovery.sites.conftest import KEY, make_point


def plain(site: LocalSite, point: str, tmp_path: Path) -> bytes:
    raw = tmp_path / "raw"
    location = site.snapshot_location(KEY, point)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", location, raw], check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_range_of_any_point_of_a_chain_is_what_qemu_reads(
    local_site: LocalSite, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_io, "STRETCH_BYTES", 1 << 20)  # several maps, and reads across their edges
    rng = random.Random(seed)
    for number in range(4):
        writes = []
        for _ in range(6):
            length = rng.choice([512, 4096, 65_536, 200_000])
            writes.append((rng.randrange(0, (1 << 20) - length), rng.randbytes(length)))
        make_point(local_site, KEY, f"p{number}", *writes)
    for number in range(4):
        expected = plain(local_site, f"p{number}", tmp_path)
        io = local_site.open_snapshot(KEY, f"p{number}")
        try:
            assert io.size_bytes == len(expected)
            assert io.read(0, len(expected)) == expected
            for _ in range(20):
                offset = rng.randrange(len(expected))
                length = rng.randrange(1, len(expected) - offset + 1)
                assert io.read(offset, length) == expected[offset : offset + length], (seed, number, offset, length)
        finally:
            io.close()


def test_a_point_is_for_reading_only(local_site: LocalSite) -> None:
    make_point(local_site, KEY, "p1", (0, b"x" * 4096))
    io = local_site.open_snapshot(KEY, "p1")
    with pytest.raises(Conflict):
        io.write(0, b"y")
    with pytest.raises(Conflict):
        io.zero(0, 512)
    with pytest.raises(StorageError):
        io.read(io.size_bytes - 1, 2)
    io.flush()
    io.close()
    io.close()
    with pytest.raises(StorageError):
        io.read(0, 512)


def test_a_chain_is_not_merged_while_one_of_its_points_is_read(local_site: LocalSite) -> None:
    make_point(local_site, KEY, "p1", (0, b"1" * 65_536))
    make_point(local_site, KEY, "p2", (65_536, b"2" * 65_536))
    io = local_site.open_snapshot(KEY, "p2")
    with pytest.raises(Conflict):
        local_site.delete_snapshot(KEY, "p1")
    io.close()
    local_site.delete_snapshot(KEY, "p1")
    with pytest.raises(NotFound):
        local_site.open_snapshot(KEY, "p1")
    io = local_site.open_snapshot(KEY, "p2")
    assert io.read(0, 131_072) == b"1" * 65_536 + b"2" * 65_536
    io.close()


def test_a_file_that_was_cut_off_is_named(local_site: LocalSite, tmp_path: Path) -> None:
    make_point(local_site, KEY, "p1", (0, random.Random(4).randbytes(1 << 20)))
    path = Path(local_site.snapshot_location(KEY, "p1"))
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - (512 << 10))
    io = local_site.open_snapshot(KEY, "p1")
    with pytest.raises(StorageError):
        io.read(0, 1 << 20)
    io.close()


def test_a_backing_files_name_that_was_damaged_is_one_clear_error(local_site: LocalSite) -> None:
    """QEMU quotes the name as it stands there, which may be no text at all."""
    make_point(local_site, KEY, "p1", (0, b"1" * 4096))
    make_point(local_site, KEY, "p2", (0, b"2" * 4096))
    path = Path(local_site.snapshot_location(KEY, "p2"))
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    at = content.index(b"p1.qcow2")
    content[at] = 0xE3
    path.write_bytes(content)
    with pytest.raises(StorageError):
        local_site.snapshot_data(KEY, "p2", Extent(0, 1 << 20))
    with pytest.raises(StorageError):
        local_site.open_snapshot(KEY, "p2")


def test_threads_share_the_maps_and_each_is_asked_for_once(
    local_site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_io, "STRETCH_BYTES", 256 << 10)
    content = random.Random(4).randbytes(1 << 20)
    make_point(local_site, KEY, "p1", (0, content))
    asked: list[str] = []
    ask = snapshot_io.qemu_img

    def counting(*arguments: str, doing: str) -> str:
        asked.append(next(argument for argument in arguments if argument.startswith("--start-offset")))
        return ask(*arguments, doing=doing)

    monkeypatch.setattr(snapshot_io, "qemu_img", counting)
    io = local_site.open_snapshot(KEY, "p1")
    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda number: bytes(io.read(number * 131_072, 131_072)), [*range(8)] * 4))
    finally:
        io.close()
    assert b"".join(found[:8]) == content and found[:8] * 4 == found
    assert len(asked) == len(set(asked)) == 4


def test_a_map_that_could_not_be_read_is_asked_for_again(
    local_site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_point(local_site, KEY, "p1", (0, b"x" * 4096))
    io = local_site.open_snapshot(KEY, "p1")
    try:
        with monkeypatch.context() as patched, pytest.raises(StorageError):
            patched.setattr(snapshot_io, "qemu_img", lambda *_, **__: "[]")
            io.read(0, 512)
        assert io.read(0, 512) == b"x" * 512
    finally:
        io.close()
