from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError, ToolMissing
from recovery.repair.record import KeyChange
from recovery.repair.windows import edit
from recovery.repair.windows.bins import DamagedHive
from recovery.repair.windows.edit import apply, difference
from recovery.repair.windows.hive import Hive
from tests.recovery.repair.windows.making import hive_with, sealed, small_hive

pytestmark = pytest.mark.usefixtures("hivex")

STORNVME = r"ControlSet001\Services\stornvme"
CHANGES = [
    KeyChange(hive="SYSTEM", key=STORNVME, value="Start", before=(4, bytes(4)), after=(4, b"\3\0\0\0")),
    KeyChange(hive="SYSTEM", key=rf"{STORNVME}\StartOverride", value="0", before=(4, b"\3\0\0\0"), after=None),
    KeyChange(hive="SYSTEM", key=rf"{STORNVME}\StartOverride", value=None, before=True, after=False),
    KeyChange(hive="SYSTEM", key=r"ControlSet001\Services\viostor", value=None, before=False, after=True),
    KeyChange(hive="SYSTEM", key=r"ControlSet001\Services\viostor", value="Group", before=None, after=(1, b"S\0\0\0")),
]


def test_a_real_hive_differs_afterwards_in_nothing_but_what_was_asked_for(windows_10: Hive) -> None:
    changed = apply(windows_10, CHANGES)
    found = difference(windows_10, changed)
    assert found == {(change.key, change.value): (change.before, change.after) for change in CHANGES}
    assert changed.key(rf"{STORNVME}\StartOverride") is None
    assert changed.dword(STORNVME, "Start") == 3


def test_no_change_is_the_same_hive(windows_7: Hive) -> None:
    assert apply(windows_7, []) is windows_7


def test_a_change_whose_before_is_not_what_is_there_is_refused() -> None:
    hive = Hive("TEST", hive_with({(r"Services\msahci", "Start"): (4, b"\3\0\0\0")}))
    key = r"Services\msahci"
    wrong = KeyChange(hive="TEST", key=key, value="Start", before=(4, bytes(4)), after=(4, b"\1\0\0\0"))
    with pytest.raises(RecoveryError, match=r"msahci is not as it should be \(nothing was changed"):
        apply(hive, [wrong])


def test_a_key_that_holds_more_than_is_known_is_not_removed_unseen() -> None:
    hive = Hive("TEST", hive_with({(r"Key\Sub", "v"): (3, b"x")}))
    with pytest.raises(RecoveryError, match="not as it should be"):
        apply(hive, [KeyChange(hive="TEST", key=r"Key\Sub", value=None, before=True, after=False)])


def test_a_key_that_is_not_there_is_named() -> None:
    change = KeyChange(hive="TEST", key=r"No\Where", value="v", before=None, after=(3, b""))
    with pytest.raises(RecoveryError, match=r"hivex cannot write the registry hive TEST: .*No\\Where"):
        apply(Hive("TEST", small_hive()), [change])


def test_new_keys_are_found_by_bisection_where_hivex_orders_otherwise() -> None:
    names = ["a_b", "AAB", "a^b", "ab", "a[b", "Z", "_", "aa_"]
    draft = hive_with({(name, ""): (3, b"x") for name in names})
    hive = Hive("TEST", draft)
    assert hive.is_ordered(hive.root)
    assert sorted(key.name for key in hive.subkeys(hive.root)) == sorted(names)


def test_an_unsound_hive_never_reaches_hivex() -> None:
    content = bytearray(hive_with({("Key", "v"): (3, b"x" * 100)}))
    at = content.index(b"\xffvk") + 1
    struct.pack_into("<I", content, at + 8, 0x7FFF0)
    with pytest.raises(DamagedHive):
        apply(
            Hive("TEST", sealed(bytes(content))),
            [KeyChange(hive="TEST", key="New", value=None, before=False, after=True)],
        )


def test_a_value_too_long_for_hivex_is_refused_not_written_wrongly() -> None:
    change = KeyChange(hive="TEST", key="Key", value="v", before=(3, b"x"), after=(3, b"y" * 20_000))
    with pytest.raises(RecoveryError, match="what hivex wrote is not sound"):
        apply(Hive("TEST", hive_with({("Key", "v"): (3, b"x")})), [change])


def test_a_machine_without_hivex_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    os.chmod(tmp_path, 0o755)
    monkeypatch.setattr(edit, "_PYTHON", "/bin/false" if os.geteuid() == 0 else str(python))
    change = KeyChange(hive="TEST", key="New", value=None, before=False, after=True)
    with pytest.raises((ToolMissing, RecoveryError)):
        apply(Hive("TEST", small_hive()), [change])
    monkeypatch.setattr(edit, "_PYTHON", "/usr/bin/no-python-here")
    with pytest.raises(ToolMissing, match="apt-get install python3-hivex"):
        apply(Hive("TEST", small_hive()), [change])
