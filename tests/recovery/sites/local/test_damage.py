"""Structures of qcow2 files that rotted: nothing is written into them that could land on what others hold."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from agent.protocol.errors import StorageError
from recovery.sites.local import LocalSite
from tests.recovery.sites.conftest import KEY, content, make_point
from tests.service.receiver.verify.rot import flip, place_of

CLUSTER = 65536
SIZE = 32 * CLUSTER
rng = random.Random(1)


@pytest.fixture
def folder(local_site: LocalSite, tmp_path: Path) -> Path:
    """Of a volume with points p0 to p2 and a working state."""
    make_point(local_site, KEY, "p0", (0, rng.randbytes(8 * CLUSTER)), size=SIZE)
    make_point(local_site, KEY, "p1", (10 * CLUSTER, rng.randbytes(CLUSTER)), size=SIZE)
    make_point(local_site, KEY, "p2", (20 * CLUSTER, rng.randbytes(CLUSTER)), size=SIZE)
    local_site.make_volume(KEY, SIZE)
    return tmp_path / "site" / KEY.server_id / f"volume-{KEY.index}"


def refcount_of(path: Path, block: bytes) -> int:
    """Where a qcow2 file counts who uses the cluster of a block: its lower byte."""
    head = path.read_bytes()
    (table,) = struct.unpack_from(">Q", head, 48)
    (counts,) = struct.unpack_from(">Q", head, table)
    return int(counts) + 2 * (place_of(path, block) // CLUSTER) + 1


@pytest.mark.parametrize("doomed", ["p0", "p1"])
def test_a_point_is_not_merged_into_a_file_that_takes_used_space_for_free(
    local_site: LocalSite, folder: Path, doomed: str
) -> None:
    held = {point: content(local_site, KEY, point) for point in ("p0", "p1", "p2")}
    rotten = folder / "p0.qcow2"
    flip(rotten, refcount_of(rotten, held["p0"][:CLUSTER]))
    if doomed == "p1":  # sound itself, and so is what it would be merged with
        local_site.delete_snapshot(KEY, doomed)
        del held[doomed]
    else:
        for delete in (local_site.check_unused, local_site.delete_snapshot):
            with pytest.raises(StorageError, match="from a copy"):
                delete(KEY, doomed)
    assert local_site.snapshots(KEY) == list(held)
    for point, expected in held.items():
        assert content(local_site, KEY, point) == expected


def cross_wired(head: Path) -> None:
    """One block's place becomes another block's: what is written to either goes to both."""
    (level_1,) = struct.unpack_from(">Q", head.read_bytes(), 40)
    (level_2,) = struct.unpack_from(">Q", head.read_bytes(), level_1)
    at = level_2 & ((1 << 56) - 512)
    places = struct.unpack_from(">2Q", head.read_bytes(), at)
    with open(head, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(">2Q", places[1], places[1]))


DAMAGE = {
    "empty": lambda head: head.write_bytes(b""),
    "magic": lambda head: flip(head, 1),
    "backing file": lambda head: flip(head, place_of(head, b"p2.qcow2") + 1),
    "cross-wired": cross_wired,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_working_state_that_rotted_is_made_anew_and_keeps_nobody_from_the_points(
    local_site: LocalSite, folder: Path, damage: str
) -> None:
    held = {point: content(local_site, KEY, point) for point in ("p0", "p1", "p2")}
    io = local_site.open_volume(KEY)
    io.write(0, rng.randbytes(2 * CLUSTER))
    io.flush()
    io.close()
    DAMAGE[damage](folder / "head.qcow2")
    assert local_site.snapshots(KEY) == ["p0", "p1", "p2"]
    local_site.delete_snapshot(KEY, "p0")
    local_site.make_volume(KEY, SIZE)
    assert local_site.changes(KEY) == []
    assert content(local_site, KEY) == held["p2"]
    assert content(local_site, KEY, "p1") == held["p1"]


def test_a_working_state_that_is_sound_keeps_what_it_holds(local_site: LocalSite, folder: Path) -> None:
    io = local_site.open_volume(KEY)
    io.write(5 * CLUSTER, b"kept")
    io.flush()
    io.close()
    local_site.make_volume(KEY, SIZE)
    assert content(local_site, KEY)[5 * CLUSTER :][:4] == b"kept"
