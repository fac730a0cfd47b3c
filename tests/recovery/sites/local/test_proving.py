"""Reading back and healing, as the Site contract has it: where data may be, what is wrong, and one block put right."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.protocol.errors import Conflict, StorageError
from recovery.sites.contract import Extent
from recovery.sites.local import LocalSite
from recovery.sites.local.qcow2 import read_header
from tests.recovery.sites.conftest import KEY, SIZE, content, make_point

BLOCK = 65536


@pytest.fixture
def file(local_site: LocalSite) -> Path:
    """The older of two points; the newer shows it through but for block 5."""
    make_point(local_site, KEY, "p1", (2 * BLOCK, b"x" * BLOCK), (5 * BLOCK, b"y" * BLOCK))
    make_point(local_site, KEY, "p2", (5 * BLOCK, b"z" * BLOCK))
    return Path(local_site.snapshot_location(KEY, "p1"))


def l2_entry(file: Path, block: int) -> int:
    """Where the file says where a block lies."""
    head = file.read_bytes()
    l1_offset = int.from_bytes(head[40:48], "big")
    return (int.from_bytes(head[l1_offset : l1_offset + 8], "big") & 0xFFFFFFFFFFFE00) + 8 * block


def overwrite(file: Path, at: int, byte: int) -> None:
    file.chmod(0o600)
    with open(file, "r+b") as open_file:
        open_file.seek(at)
        open_file.write(bytes([byte]))


def test_data_is_told_of_wherever_in_the_chain_it_lies(local_site: LocalSite, file: Path) -> None:
    everything = Extent(0, SIZE)
    wanted = [Extent(2 * BLOCK, BLOCK), Extent(5 * BLOCK, BLOCK)]
    assert local_site.snapshot_data(KEY, "p2", everything) == wanted
    assert local_site.snapshot_data(KEY, "p2", Extent(3 * BLOCK, 3 * BLOCK)) == wanted[1:]
    assert local_site.snapshot_data(KEY, "p2", Extent(6 * BLOCK, 2 * BLOCK)) == []


def test_a_sound_chain_gives_no_complaints_and_a_damaged_file_names_itself(local_site: LocalSite, file: Path) -> None:
    assert local_site.snapshot_complaints(KEY, "p1") == local_site.snapshot_complaints(KEY, "p2") == []
    overwrite(file, l2_entry(file, 2) + 3, 0x7F)
    (complaint,) = local_site.snapshot_complaints(KEY, "p1")
    assert str(file) in complaint
    assert local_site.snapshot_complaints(KEY, "p2") == [], "its own file is sound"


def test_one_block_is_put_right_and_nothing_else_changes(local_site: LocalSite, file: Path) -> None:
    before = [content(local_site, KEY, point) for point in ("p1", "p2")]
    overwrite(file, file.read_bytes().find(b"x" * BLOCK) + 7, 0)
    assert [content(local_site, KEY, point) for point in ("p1", "p2")] != before
    local_site.repair_snapshot(KEY, "p1", [(2 * BLOCK, b"x" * BLOCK)])
    assert [content(local_site, KEY, point) for point in ("p1", "p2")] == before
    assert file.stat().st_mode & 0o777 == 0o444
    assert local_site.snapshots(KEY) == ["p1", "p2"]


def test_nothing_is_put_right_while_the_chain_is_used(local_site: LocalSite, file: Path) -> None:
    reading = local_site.open_snapshot(KEY, "p2")
    with pytest.raises(Conflict):
        local_site.repair_snapshot(KEY, "p1", [(0, b"x" * 512)])
    reading.close()
    local_site.make_volume(KEY, SIZE)
    writing = local_site.open_volume(KEY)
    with pytest.raises(Conflict):
        local_site.repair_snapshot(KEY, "p1", [(0, b"x" * 512)])
    writing.close()


def test_nothing_is_written_into_a_file_whose_own_structures_are_wrong(local_site: LocalSite, file: Path) -> None:
    overwrite(file, l2_entry(file, 2) + 3, 0x7F)
    before = file.read_bytes()
    with pytest.raises(StorageError, match="copy"):
        local_site.repair_snapshot(KEY, "p1", [(5 * BLOCK, b"y" * BLOCK)])
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", [b"\0\0\0\0", b"../x", b"/etc"])
def test_a_header_that_names_no_file_of_the_folder_is_damage(local_site: LocalSite, file: Path, name: bytes) -> None:
    newer = Path(local_site.snapshot_location(KEY, "p2"))
    at = int.from_bytes(newer.read_bytes()[8:16], "big")
    for position, byte in enumerate(name):
        overwrite(newer, at + position, byte)
    with pytest.raises(StorageError, match="damaged"):
        read_header(newer)
