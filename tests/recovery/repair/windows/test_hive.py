from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.repair.windows import hive as module
from recovery.repair.windows.bins import DamagedHive, checksum, is_dirty
from recovery.repair.windows.hive import Hive
from tests.recovery.repair.windows.making import PAGE, headed, hive_with, sealed, small_hive

_DUMP = """
import hashlib, hivex, json, sys
hive = hivex.Hivex(sys.argv[1])
found, pending = {}, [("", hive.root())]
while pending:
    path, node = pending.pop()
    values = sorted((hive.value_key(v), *hive.value_value(v)) for v in hive.node_values(node))
    found[path] = hashlib.sha256(repr(values).encode()).hexdigest()
    for child in hive.node_children(node):
        pending.append((path + chr(92) + hive.node_name(child), child))
json.dump(found, sys.stdout)
"""


@pytest.mark.usefixtures("hivex")
@pytest.mark.parametrize("name", ["windows_7", "windows_10"])
def test_reads_a_real_hive_as_hivex_does(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    hive: Hive = request.getfixturevalue(name)
    (tmp_path / "hive").write_bytes(hive.content)
    dumped = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", _DUMP, tmp_path / "hive"], capture_output=True, check=True
    ).stdout
    ours = {}
    for path, _, values, _ in hive.walk():
        listed = sorted((value.name, value.type, value.data) for value in values)
        ours["\\" + path if path else ""] = hashlib.sha256(repr(listed).encode()).hexdigest()
    assert len(ours) > 30_000
    assert ours == json.loads(dumped)


def test_finds_keys_and_values_whatever_their_case(windows_10: Hive) -> None:
    assert windows_10.dword("SELECT", "current") == 1
    assert windows_10.value(r"controlset001\services\STORNVME\startoverride", "0").data == b"\3\0\0\0"
    assert windows_10.key(r"ControlSet001\Services\nothing") is None
    assert windows_10.dword("Select", "nothing") is None


def test_every_list_of_subkeys_that_windows_wrote_is_ordered(windows_7: Hive) -> None:
    services = windows_7.key(r"ControlSet001\services")
    assert services is not None
    assert all(windows_7.is_ordered(key) for key in [windows_7.root, services, *windows_7.subkeys(services)])


def test_reads_values_of_any_length(hivex: None) -> None:
    lengths = [0, 1, 4, 5, 4000, 16_344]
    hive = Hive("TEST", hive_with({("Key", f"of {length}"): (3, b"x" * length) for length in lengths}))
    assert {value.name: len(value.data) for value in hive.values(hive.key("Key"))} == {f"of {n}": n for n in lengths}


def test_reads_values_that_are_kept_in_segments(windows_10: Hive) -> None:
    longest = max((value for _, _, values, _ in windows_10.walk() for value in values), key=lambda item: len(item.data))
    assert len(longest.data) > 16_344, "then the comparison with hivex covers these as well"


def test_a_dirty_hive_is_not_read_as_it_is() -> None:
    hive = headed(small_hive(), 8, 7)
    assert is_dirty(hive)
    with pytest.raises(DamagedHive, match="were not replayed"):
        Hive("SYSTEM", hive)


@pytest.mark.parametrize(
    ("offset", "content", "says"),
    [
        (0, b"fger", "does not begin as a hive"),
        (20, struct.pack("<I", 2), "format 2.5"),
        (36, struct.pack("<I", 40), "no cell in use"),
        (36, struct.pack("<I", 0xFFFFFFF8), "no cell in use"),
        (40, struct.pack("<I", 8192), "should hold 8192 bytes"),
        (PAGE, b"nibh", "no bin at 0x0"),
        (PAGE + 8, struct.pack("<I", 0), "no bin at 0x0"),
        (PAGE + 32, struct.pack("<i", 0), "a cell of 0 bytes at 0x20"),
        (PAGE + 32, struct.pack("<i", -8192), "a cell of 8192 bytes at 0x20"),
        (PAGE + 36, b"kn", "no key at 0x20"),
        (PAGE + 36 + 72, struct.pack("<H", 9000), "no key at 0x20"),
        (PAGE + 36 + 44, struct.pack("<I", 32), "too short|no security descriptor"),
    ],
)
def test_damage_is_named(offset: int, content: bytes, says: str) -> None:
    hive = bytearray(small_hive())
    hive[offset : offset + len(content)] = content
    if offset:
        hive = bytearray(sealed(hive))
    with pytest.raises(DamagedHive, match=says):
        Hive("SYSTEM", bytes(hive))


def test_keys_in_a_circle_end_in_an_error(hivex: None) -> None:
    hive = Hive("TEST", hive_with({(r"Outer\Inner", "v"): (3, b"x")}))
    outer, inner = hive.key("Outer"), hive.key(r"Outer\Inner")
    content = bytearray(hive.content)
    at = PAGE + 4 + inner.offset
    struct.pack_into("<I", content, at + 20, 1)  # the inner key has one subkey: itself, through its parent's list
    struct.pack_into("<I", content, at + 28, outer.subkey_list)
    with pytest.raises(DamagedHive, match=r"used twice|belongs to another key"):
        list(Hive("TEST", sealed(bytes(content))).walk())


def test_keys_nested_too_deep_are_refused(hivex: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hive = Hive("TEST", hive_with({("\\".join("abcdefg"), "v"): (3, b"")}))
    monkeypatch.setattr(module, "MAX_DEPTH", 7)
    assert len(list(hive.walk())) == 8
    monkeypatch.setattr(module, "MAX_DEPTH", 6)
    with pytest.raises(DamagedHive, match="nested more than 6 deep"):
        list(hive.walk())


def test_many_values_that_share_one_long_content_end_in_an_error(hivex: None) -> None:
    hive = Hive("TEST", hive_with({("Key", "a"): (3, b"x" * 9000), ("Key", "b"): (3, b"y" * 9000)}))
    content = hive.content
    cells = [at for at in range(0, len(content), 8) if content[at + 3 : at + 6] == b"\xffvk"]
    first, second = (struct.unpack_from("<I", content, at + 12)[0] for at in cells)
    shared = bytearray(content)
    struct.pack_into("<I", shared, cells[1] + 12, first)
    assert first != second
    with pytest.raises(DamagedHive, match="used twice"):
        list(Hive("TEST", sealed(bytes(shared))).walk())


def _read_all(content: bytes) -> None:
    """All there is to read, or one clear error."""
    try:
        hive = Hive("TEST", content)
        for _, key, _, subkeys in hive.walk():
            assert not subkeys or hive.is_ordered(key) in (True, False)
    except DamagedHive as error:
        assert str(error).startswith("the registry hive TEST is damaged: ")


@pytest.fixture(scope="module")
def sample(hivex: None) -> bytes:
    values = {(rf"Key {number % 7}\Sub {number}", f"Value {number}"): (3, b"z" * 3 * number) for number in range(40)}
    return hive_with({**values, ("Long", "data"): (3, b"x" * 16_000), ("Oil", "ß"): (1, b"a\0\0\0")})


@settings(max_examples=250)
@given(data=st.data())
def test_a_hive_with_changed_bytes_is_read_or_refused_in_one_sentence(sample: bytes, data: st.DataObject) -> None:
    content = bytearray(sample)
    interesting = st.sampled_from([0, 1, 0x20, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFF8, 0xFFFF])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) // 4 - 1)) * 4
        struct.pack_into("<I", content, at, data.draw(interesting | st.integers(0, len(content))))
    struct.pack_into("<I", content, 508, checksum(content))
    _read_all(bytes(content))


@settings(max_examples=100)
@given(data=st.data())
def test_a_hive_cut_short_is_refused_in_one_sentence(sample: bytes, data: st.DataObject) -> None:
    _read_all(sample[: data.draw(st.integers(0, len(sample)))])


@settings(max_examples=100)
@given(st.binary(max_size=3 * PAGE))
def test_any_bytes_are_refused_in_one_sentence(content: bytes) -> None:
    _read_all(content)


def test_references_that_point_anywhere_are_read_or_refused(sample: bytes) -> None:
    """Each of a hive's words in turn says another place in it: loops, overlaps, wrong kinds."""
    for at in range(PAGE, PAGE + 3000, 4):
        content = bytearray(sample)
        struct.pack_into("<I", content, at, struct.unpack_from("<I", sample, PAGE + 28 + 36)[0] + 8 * (at % 61))
        _read_all(bytes(content))


def test_a_hive_with_more_keys_and_values_than_a_system_has_is_refused(
    sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(Hive("TEST", sample).walk())
    monkeypatch.setattr(module, "MAX_ENTRIES", 60)
    with pytest.raises(DamagedHive, match="more than 60 keys and values"):
        Hive("TEST", sample).check()
    monkeypatch.setattr(module, "MAX_ENTRIES", 6)
    with pytest.raises(DamagedHive, match="says that it has"):
        Hive("TEST", sample).key(r"Key 0\Sub 0")
