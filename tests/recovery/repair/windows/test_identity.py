"""What a copy of a Windows gets of its own, and that nothing else in its hives is another's."""

from __future__ import annotations

import uuid

import pytest

from recovery.repair.windows.edit import difference
from recovery.repair.windows.hive import Hive
from recovery.repair.windows.hivedraft import HiveDraft
from recovery.repair.windows.identity import rename
from recovery.repair.windows.repair import undo_keys
from tests.recovery.repair.windows.making import headed, hive_with, small_hive
from tests.recovery.repair.windows.test_repair import SYSTEM, guest, repair

pytestmark = pytest.mark.usefixtures("hivex")

SOFTWARE = "/Windows/System32/config/SOFTWARE"
GUID = "0a1b2c3d-0000-4000-8000-000000000001"
CRYPTOGRAPHY = r"Microsoft\Cryptography"


def software() -> bytes:
    values = {
        (CRYPTOGRAPHY, "MachineGuid"): (1, f"{GUID}\0".encode("utf-16-le")),
        (r"Microsoft\Windows NT\CurrentVersion", "ProductName"): (1, "Windows\0".encode("utf-16-le")),
    }
    return hive_with(values, "SOFTWARE")


def text(hive: Hive, key: str, name: str) -> str:
    return HiveDraft("", hive).text(key, name)


@pytest.mark.parametrize("windows", ["windows_7", "windows_10"])
def test_a_copy_of_a_real_windows_has_a_name_and_a_guid_of_its_own_and_nothing_else(
    windows: str, request: pytest.FixtureRequest
) -> None:
    before: Hive = request.getfixturevalue(windows)
    _, as_no_copy = repair(guest(before.content))
    files = guest(before.content, **{SOFTWARE: software()})
    findings, keys = repair(files, host_name="web01-clone-1")
    system, programs = Hive("SYSTEM", files.contents[SYSTEM]), Hive("SOFTWARE", files.contents[SOFTWARE])

    draft = HiveDraft(SYSTEM, before)
    control_set = f"ControlSet{draft.dword('Select', 'Current'):03}"
    assert text(system, rf"{control_set}\Control\ComputerName\ComputerName", "ComputerName") == "WEB01-CLONE-1"
    for name in ("Hostname", "NV Hostname"):
        assert text(system, rf"{control_set}\Services\Tcpip\Parameters", name) == "web01-clone-1"
    assert str(uuid.UUID(text(programs, CRYPTOGRAPHY, "MachineGuid"))) != GUID

    rename(draft, "web01-clone-1")
    wanted = {(change.key, change.value) for change in (*as_no_copy, *draft.changes) if change.hive == SYSTEM}
    assert set(difference(before, system)) == wanted, "the name, and what any repair changes"
    assert set(difference(Hive("SOFTWARE", software()), programs)) == {(CRYPTOGRAPHY, "MachineGuid")}
    assert any("its SID and its membership of a domain are still the server's" in found.what for found in findings)
    undone, left = undo_keys(files, keys)
    assert (len(undone), left) == (len(keys), [])
    assert difference(before, Hive("SYSTEM", files.contents[SYSTEM])) == {}
    assert difference(Hive("SOFTWARE", software()), Hive("SOFTWARE", files.contents[SOFTWARE])) == {}


@pytest.mark.parametrize("content", [None, headed(small_hive(), 8, 7), b"regf" + bytes(9000)])
def test_a_copy_whose_software_cannot_be_changed_is_renamed_all_the_same_and_that_is_said(
    content: bytes | None, windows_10: Hive
) -> None:
    files = guest(windows_10.content, **({} if content is None else {SOFTWARE: content}))
    findings, keys = repair(files, host_name="test-1")
    (kept,) = [found for found in findings if "keeps the server's machine GUID" in found.what]
    assert (kept.level, kept.repaired) == ("warn", False)
    assert {change.hive for change in keys if "ComputerName" in change.key} == {SYSTEM}
    assert files.contents.get(SOFTWARE) == content


def test_two_copies_have_two_guids(windows_10: Hive) -> None:
    guids = set()
    for _ in range(2):
        files = guest(windows_10.content, **{SOFTWARE: software()})
        repair(files, host_name="test-1")
        guids.add(text(Hive("SOFTWARE", files.contents[SOFTWARE]), CRYPTOGRAPHY, "MachineGuid"))
    assert len(guids) == 2
