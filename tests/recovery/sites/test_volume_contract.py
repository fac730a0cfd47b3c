"""What recovery/sites/contract.py says of volumes and documents, as tests that every site passes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from agent.protocol.errors import Conflict, NotFound
from recovery.sites.contract import Extent, InstanceSpec, Site, VolumeKey
from tests.recovery.sites.conftest import KEY, SIZE, content, covers, make_point, write

Specs = Callable[..., InstanceSpec]
MIB = 1 << 20


# --- the working state ---------------------------------------------------------------------------------------------


def test_a_new_volume_is_all_zeros_and_has_the_size_asked_for(site: Site) -> None:
    assert not site.volume_exists(KEY)
    site.make_volume(KEY, SIZE + 512)
    assert site.volume_exists(KEY)
    assert content(site, KEY) == bytes(SIZE + 512)


def test_making_a_volume_again_keeps_its_content(site: Site) -> None:
    site.make_volume(KEY, SIZE)
    write(site, KEY, (4096, b"kept" * 128))
    site.make_volume(KEY, SIZE)
    assert content(site, KEY)[4096 : 4096 + 512] == b"kept" * 128


def test_after_a_snapshot_the_working_state_begins_with_its_content(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"a" * 70_000))
    assert not site.volume_exists(KEY)
    site.make_volume(KEY, SIZE)
    assert content(site, KEY) == b"a" * 70_000 + bytes(SIZE - 70_000)


@pytest.mark.parametrize("small", [512, 100 * 512, 65_536, 300_032])
def test_what_was_cut_off_does_not_come_back_when_the_volume_grows(site: Site, small: int) -> None:
    site.make_volume(KEY, SIZE)
    write(site, KEY, (0, b"x" * SIZE))
    site.make_volume(KEY, small)
    assert content(site, KEY) == b"x" * small
    site.make_volume(KEY, SIZE)
    assert content(site, KEY) == b"x" * small + bytes(SIZE - small)


@pytest.mark.parametrize("small", [512, 100 * 512, 65_536, 300_032])
def test_cutting_and_growing_over_a_snapshot_reads_zeros_in_the_grown_part(site: Site, small: int) -> None:
    make_point(site, KEY, "p1", (0, b"x" * SIZE))
    site.make_volume(KEY, small)
    write(site, KEY, (0, b"y" * 512))
    expected = b"y" * 512 + b"x" * (small - 512)
    assert content(site, KEY) == expected
    site.snapshot(KEY, "p2")
    site.make_volume(KEY, 2 * SIZE)
    assert content(site, KEY) == expected + bytes(2 * SIZE - small)
    assert content(site, KEY, "p1") == b"x" * SIZE
    assert content(site, KEY, "p2") == expected


def test_a_missing_working_state_is_not_found(site: Site) -> None:
    for missing in (site.open_volume, site.changes):
        with pytest.raises(NotFound):
            missing(KEY)
    with pytest.raises(NotFound):
        site.snapshot(KEY, "p1")


def test_a_working_state_is_open_once_at_a_time(site: Site) -> None:
    site.make_volume(KEY, SIZE)
    io = site.open_volume(KEY)
    for refused in (
        lambda: site.open_volume(KEY),
        lambda: site.changes(KEY),
        lambda: site.revert(KEY),
        lambda: site.snapshot(KEY, "p1"),
        lambda: site.delete_volume(KEY),
    ):
        with pytest.raises(Conflict):
            refused()
    io.close()
    io.close()
    site.open_volume(KEY).close()


def test_reverting_throws_the_working_state_away(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1" * 512))
    site.make_volume(KEY, SIZE)
    write(site, KEY, (0, b"2" * 512))
    site.revert(KEY)
    assert not site.volume_exists(KEY)
    site.revert(KEY)
    site.make_volume(KEY, SIZE)
    assert content(site, KEY)[:512] == b"1" * 512


def test_an_open_volume_reads_what_was_written_and_zeroed_at_any_offset(site: Site) -> None:
    site.make_volume(KEY, SIZE)
    io = site.open_volume(KEY)
    try:
        assert io.size_bytes == SIZE
        io.write(1000, bytearray(b"a" * 200_000))
        io.write(500_000, memoryview(b"b" * 10))
        io.zero(2000, 100_000)
        io.flush()
        expected = bytearray(SIZE)
        expected[1000:201_000] = b"a" * 200_000
        expected[500_000:500_010] = b"b" * 10
        expected[2000:102_000] = bytes(100_000)
        assert io.read(0, SIZE) == expected
        assert io.read(1999, 2) == b"a\0"
        assert io.read(SIZE, 0) == b""
    finally:
        io.close()


def test_an_open_volume_serves_several_threads_at_once(site: Site) -> None:
    site.make_volume(KEY, 8 * MIB)
    io = site.open_volume(KEY)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                block = bytes([number, turn]) * 32_768
                io.write(number * MIB + (turn % 8) * 65_536, block)
                assert io.read(number * MIB + (turn % 8) * 65_536, 65_536) == block
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    io.close()
    assert not failures


# --- changes -------------------------------------------------------------------------------------------------------


def test_changes_cover_all_that_differs_from_the_newest_snapshot(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1" * SIZE))
    site.make_volume(KEY, SIZE)
    assert site.changes(KEY) == []
    io = site.open_volume(KEY)
    io.write(131_072, b"2" * 512)
    io.zero(524_288, 65_536)
    io.flush()
    io.close()
    changes = site.changes(KEY)
    assert covers(changes, 131_072)
    assert covers(changes, 524_288)
    ends = [extent.offset + extent.length for extent in changes]
    assert all(end < after.offset for end, after in zip(ends, changes[1:], strict=False))


def test_changes_of_a_first_working_state_are_against_zeros(site: Site) -> None:
    site.make_volume(KEY, SIZE)
    assert site.changes(KEY) == []
    write(site, KEY, (65_536, b"x"))
    assert covers(site.changes(KEY), 65_536)


def test_changes_include_what_a_volume_grew_by(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1" * 512))
    site.make_volume(KEY, 2 * SIZE)
    assert site.changes(KEY) == [Extent(SIZE, SIZE)]


def test_changes_stay_inside_a_volume_that_was_cut(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1" * SIZE))
    site.make_volume(KEY, SIZE // 2 + 512)
    assert all(extent.offset + extent.length <= SIZE // 2 + 512 for extent in site.changes(KEY))


def test_changes_reach_back_to_the_newest_snapshot_that_is_left(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1" * 512))
    make_point(site, KEY, "p2", (131_072, b"2" * 512))
    site.make_volume(KEY, SIZE)
    write(site, KEY, (262_144, b"3" * 512))
    site.delete_snapshot(KEY, "p2")
    changes = site.changes(KEY)
    assert covers(changes, 131_072)
    assert covers(changes, 262_144)


# --- snapshots -----------------------------------------------------------------------------------------------------


def test_snapshots_are_listed_oldest_first_and_never_change(site: Site) -> None:
    names = ["zebra", "10", "apple", "9"]
    for number, name in enumerate(names):
        make_point(site, KEY, name, (number * 65_536, bytes([number + 1]) * 65_536))
    assert site.snapshots(KEY) == names
    for number, name in enumerate(names):
        held = b"".join(bytes([n + 1]) * 65_536 for n in range(number + 1))
        assert content(site, KEY, name) == held + bytes(SIZE - len(held))


def test_a_snapshot_that_was_made_is_not_made_again(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1"))
    site.snapshot(KEY, "p1")
    site.make_volume(KEY, SIZE)
    write(site, KEY, (0, b"2"))
    site.snapshot(KEY, "p1")
    assert content(site, KEY, "p1")[:1] == b"1"
    assert content(site, KEY)[:1] == b"2"


def test_a_snapshot_is_read_any_number_of_times_even_beside_a_push_but_never_written(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1" * 512))
    site.make_volume(KEY, SIZE)
    first, second, head = site.open_snapshot(KEY, "p1"), site.open_snapshot(KEY, "p1"), site.open_volume(KEY)
    try:
        head.write(0, b"2" * 512)
        assert first.read(0, 512) == second.read(0, 512) == b"1" * 512
        for refused in (lambda: first.write(0, b"3"), lambda: first.zero(0, 512)):
            with pytest.raises(Conflict):
                refused()
    finally:
        for io in (first, second, head):
            io.close()
    assert content(site, KEY, "p1")[:512] == b"1" * 512


def test_a_snapshot_that_is_not_there_is_not_found(site: Site) -> None:
    site.make_volume(KEY, SIZE)
    for name in ("p1", "head"):
        with pytest.raises(NotFound):
            site.open_snapshot(KEY, name)
        with pytest.raises(NotFound):
            site.snapshot_location(KEY, name)


@pytest.mark.parametrize("gone", ["p1", "p2", "p3"])
@pytest.mark.parametrize("with_head", [False, True])
def test_deleting_a_snapshot_keeps_all_others(site: Site, gone: str, with_head: bool) -> None:
    make_point(site, KEY, "p1", (0, b"1" * SIZE))
    make_point(site, KEY, "p2", (0, b"2" * 1000), size=SIZE // 2 + 512)
    make_point(site, KEY, "p3", (65_536, b"3" * 1000), size=2 * SIZE)
    before = {name: content(site, KEY, name) for name in ("p1", "p2", "p3")}
    head = b""
    if with_head:
        site.make_volume(KEY, SIZE)
        write(site, KEY, (131_072, b"4" * 1000))
        head = content(site, KEY)
    site.delete_snapshot(KEY, gone)
    site.delete_snapshot(KEY, gone)
    del before[gone]
    assert site.snapshots(KEY) == sorted(before)
    assert {name: content(site, KEY, name) for name in before} == before
    with pytest.raises(NotFound):
        site.open_snapshot(KEY, gone)
    if with_head:
        assert content(site, KEY) == head
    site.make_volume(KEY, 2 * SIZE)
    write(site, KEY, (0, b"5"))
    site.snapshot(KEY, "p4")
    assert {name: content(site, KEY, name) for name in before} == before


def test_a_snapshot_is_not_deleted_while_the_volume_is_open(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1"))
    make_point(site, KEY, "p2", (0, b"2"))
    site.make_volume(KEY, SIZE)
    for opened in (site.open_volume(KEY), site.open_snapshot(KEY, "p2")):
        for refused in (site.check_unused, site.delete_snapshot):
            with pytest.raises(Conflict):
                refused(KEY, "p1")
        opened.close()
    site.check_unused(KEY, "p1")
    assert site.snapshots(KEY) == ["p1", "p2"]
    site.delete_snapshot(KEY, "p1")
    assert site.snapshots(KEY) == ["p2"]


def test_deleting_a_volume_removes_all_of_it_and_nothing_else(site: Site) -> None:
    other = VolumeKey("web01", 1)
    make_point(site, KEY, "p1", (0, b"1"))
    site.make_volume(KEY, SIZE)
    make_point(site, other, "p1", (0, b"other"))
    assert site.volumes() == [KEY, other]
    site.delete_volume(KEY)
    site.delete_volume(KEY)
    assert site.volumes() == [other]
    assert site.snapshots(KEY) == []
    assert not site.volume_exists(KEY)
    assert content(site, other, "p1")[:5] == b"other"


def test_an_operator_is_told_where_a_snapshot_lies_and_how_much_space_is_left(site: Site) -> None:
    make_point(site, KEY, "p1", (0, b"1"))
    assert site.snapshot_location(KEY, "p1")
    assert site.free_bytes() > 0
    assert site.name


# --- documents -----------------------------------------------------------------------------------------------------


def test_documents_are_stored_replaced_listed_and_deleted(site: Site) -> None:
    site.write_document("web01", "p1.json", b"one")
    site.write_document("web01", "p1.json", b"two")
    site.write_document("db01", "p1.0.digests", bytes(range(256)))
    assert site.read_document("web01", "p1.json") == b"two"
    assert site.read_document("db01", "p1.0.digests") == bytes(range(256))
    assert sorted(site.documents()) == [("db01", "p1.0.digests"), ("web01", "p1.json")]
    assert list(site.documents("web01")) == [("web01", "p1.json")]
    assert list(site.documents("nobody")) == []
    site.delete_document("web01", "p1.json")
    site.delete_document("web01", "p1.json")
    with pytest.raises(NotFound):
        site.read_document("web01", "p1.json")
    assert site.volumes() == []
