from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.protocol.errors import RecoveryError
from recovery.repair.windows.bins import checksum, is_dirty
from recovery.repair.windows.edit import difference
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.replay import marvin32, replay
from tests.recovery.repair.windows.making import (
    PAGE,
    changed_pages,
    entry,
    headed,
    hive_with,
    log_header,
    new_log,
    old_log,
    sealed,
    small_hive,
)


@pytest.fixture(scope="module")
def stages(hivex: None) -> list[bytes]:
    """One hive at four instants, each longer than the one before."""
    values = [{(f"Key {n}", "data"): (3, bytes([n]) * 9000) for n in range(1, last + 1)} for last in range(4)]
    return [sealed(hive_with(stage), 100) for stage in values]


def same(one: bytes, other: bytes) -> bool:
    return not difference(Hive("ONE", one), Hive("OTHER", other))


def log_of(stages: list[bytes], sequence: int) -> bytes:
    steps = itertools.pairwise(stages)
    entries = [entry(after, changed_pages(before, after), sequence + n) for n, (before, after) in enumerate(steps)]
    return new_log(stages[0], sequence, *entries)


@pytest.mark.parametrize(
    ("seed", "data", "expected"),
    [
        (0x004FB61A001BDBCC, "", 0x30ED35C100CD3C7D),
        (0x004FB61A001BDBCC, "af", 0x48E73FC77D75DDC1),
        (0x004FB61A001BDBCC, "e70f", 0xB5F6E1FC485DBFF8),
        (0x004FB61A001BDBCC, "37f495", 0xF0B07C789B8CF7E8),
        (0x004FB61A001BDBCC, "8642dc59", 0x7008F2E87E9CF556),
        (0x804FB61A001BDBCC, "", 0x10A9D5D3996FD65D),
        (0x804FB61A001BDBCC, "ab427ea8d10fc7", 0xE203987DBA252FB3),
        (0x804FB61A801BDBCC, "00", 0xA37FB0DA2ECAE06C),
    ],
)
def test_hashes_as_dotnet_says_marvin_does(seed: int, data: str, expected: int) -> None:
    assert marvin32(bytes.fromhex(data), seed) == expected


def test_a_clean_hive_stays_as_it_is_whatever_its_logs_say(stages: list[bytes]) -> None:
    assert replay("SYSTEM", stages[0], [log_of(stages, 100)]) is stages[0]


def test_a_dirty_hive_gets_all_that_its_log_holds(stages: list[bytes]) -> None:
    result = replay("SYSTEM", headed(stages[0], 101, 100), [log_of(stages, 101)])
    assert not is_dirty(result)
    assert same(result, stages[3])


def test_entries_are_taken_from_both_logs_by_their_numbers(stages: list[bytes]) -> None:
    first, second, third = (
        entry(after, changed_pages(before, after), 101 + n)
        for n, (before, after) in enumerate(itertools.pairwise(stages))
    )
    logs = [new_log(stages[0], 103, third), new_log(stages[0], 101, first, second)]
    assert same(replay("SYSTEM", headed(stages[0], 101, 100), logs), stages[3])


def test_entries_that_were_applied_long_ago_are_left(stages: list[bytes]) -> None:
    stale = entry(stages[0], [0], 42)
    logs = [new_log(stages[0], 101, *(entry(stages[1], changed_pages(stages[0], stages[1]), 101), stale))]
    assert same(replay("SYSTEM", headed(stages[0], 101, 100), logs), stages[1])


def test_an_entry_that_was_not_finished_ends_the_log(stages: list[bytes]) -> None:
    whole = log_of(stages, 101)
    cut = bytearray(whole)
    cut[-2000] ^= 1
    assert same(replay("SYSTEM", headed(stages[0], 101, 100), [bytes(cut)]), stages[2])
    assert same(replay("SYSTEM", headed(stages[0], 101, 100), [whole[:-1000]]), stages[2])


def test_what_stays_in_the_logs_is_older_than_the_result(stages: list[bytes]) -> None:
    result = replay("SYSTEM", headed(stages[0], 101, 100), [log_of(stages, 101)])
    primary, secondary = struct.unpack_from("<2I", result, 4)
    assert primary == secondary == 104


def test_entries_behind_a_gap_are_not_applied(stages: list[bytes]) -> None:
    with pytest.raises(RecoveryError, match="hold the rest"):
        replay("SYSTEM", headed(stages[0], 101, 100), [log_of(stages, 105)])


def test_a_first_sector_that_is_torn_comes_from_the_log(stages: list[bytes]) -> None:
    torn = bytearray(headed(stages[0], 101, 100))
    torn[300:508] = b"\xee" * 208
    assert same(replay("SYSTEM", bytes(torn), [log_of(stages, 101)]), stages[3])


def test_a_log_of_windows_7_is_replayed(stages: list[bytes]) -> None:
    pages = changed_pages(stages[0], stages[2])
    result = replay("SYSTEM", headed(stages[0], 101, 100), [b"", old_log(stages[2], pages, 101)])
    assert not is_dirty(result)
    assert same(result, stages[2])


def test_a_log_of_windows_7_that_was_made_for_another_write_is_left(stages: list[bytes]) -> None:
    other = bytearray(old_log(stages[2], changed_pages(stages[0], stages[2]), 101))
    struct.pack_into("<Q", other, 12, 1)
    struct.pack_into("<I", other, 508, checksum(other))
    with pytest.raises(RecoveryError, match="hold the rest"):
        replay("SYSTEM", headed(stages[0], 101, 100), [bytes(other)])


def test_a_dirty_hive_without_logs_is_refused_with_the_way_out() -> None:
    with pytest.raises(RecoveryError, match=r"logs do not hold the rest \(take another recovery point") as caught:
        replay("SYSTEM", headed(small_hive(), 8, 7), [])
    assert "SYSTEM" in caught.value.message


@settings(max_examples=150)
@given(data=st.data())
def test_changed_and_cut_logs_complete_a_hive_or_are_refused_in_one_sentence(
    stages: list[bytes], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["new", "old"]))
    whole = log_of(stages, 101) if kind == "new" else old_log(stages[2], changed_pages(stages[0], stages[2]), 101)
    log = bytearray(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    for _ in range(data.draw(st.integers(0, 4)) if len(log) > 600 else 0):
        at = data.draw(st.integers(0, 150)) * 4 + data.draw(st.sampled_from([0, 512]))
        struct.pack_into("<I", log, min(at, len(log) - 4), data.draw(st.integers(0, 0xFFFF_FFFF)))
    if len(log) > 512:
        struct.pack_into("<I", log, 508, checksum(log))
    try:
        result = replay("SYSTEM", headed(stages[0], 101, 100), [bytes(log)])
        assert not is_dirty(result)
        list(Hive("SYSTEM", result).walk())
    except RecoveryError as error:
        assert error.hint


@pytest.mark.parametrize(
    ("bins_bytes", "page_at", "says"),
    [
        (0x7FFF_F000, 0, "gives it 2147479552 bytes"),
        (1000, 0, "gives it 1000 bytes"),
        (PAGE, PAGE, "behind the hive's end"),
    ],
)
def test_an_entry_that_writes_anywhere_is_refused(bins_bytes: int, page_at: int, says: str) -> None:
    body = struct.pack("<2I", page_at, PAGE) + bytes(PAGE)
    body = body.ljust(-(-(40 + len(body)) // 512) * 512 - 40, b"\0")
    head = struct.pack("<4s5IQ", b"HvLE", 40 + len(body), 0, 101, bins_bytes, 1, marvin32(body))
    log = log_header(small_hive(), 101, 6) + head + struct.pack("<Q", marvin32(head)) + body
    with pytest.raises(RecoveryError, match=says):
        replay("SYSTEM", headed(small_hive(), 101, 100), [log])
