from __future__ import annotations

from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError
from recovery.repair.target import Bus
from recovery.repair.windows import supplied
from recovery.repair.windows.supplied import DriverFolder, Supplied


def folder(root: Path, *names: str) -> DriverFolder:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return DriverFolder(root)


def test_without_a_folder_there_is_nothing_and_all_is_missing(tmp_path: Path) -> None:
    drivers = DriverFolder(tmp_path / "drivers")
    assert drivers.of("web01") == Supplied()
    assert drivers.missing("web01", Bus.VIRTIO) == ["viostor.sys", "netkvm.inf"]


def test_files_are_known_by_their_names_in_any_case(tmp_path: Path) -> None:
    drivers = folder(tmp_path, "VIOSTOR.SYS", "NetKVM.inf", "netkvm.sys", "netkvm.pdb", ".hidden")
    assert drivers.missing("web01", Bus.VIRTIO) == []
    assert drivers.of("web01").disk_driver("viostor") == b"VIOSTOR.SYS"
    assert sorted(drivers.of("web01").packages) == ["netkvm.inf", "netkvm.sys", "viostor.sys"]


def test_a_driver_without_its_inf_is_for_the_disk_alone(tmp_path: Path) -> None:
    drivers = folder(tmp_path, "viostor.sys")
    assert drivers.of("web01").packages == {}
    assert drivers.missing("web01", Bus.VIRTIO) == ["netkvm.inf"]


def test_a_servers_own_folder_is_instead_of_the_one_for_all(tmp_path: Path) -> None:
    drivers = folder(tmp_path, "viostor.sys", "old01/viostor.sys")
    assert drivers.of("old01").disk_driver("viostor") == b"old01/viostor.sys"
    assert drivers.of("web01").disk_driver("viostor") == b"viostor.sys"


@pytest.mark.parametrize("name", ["..", "../secret", ".", "", "/etc"])
def test_a_servers_name_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    folder(tmp_path, "secret/viostor.sys")
    drivers = folder(tmp_path / "drivers", "viostor.sys")
    assert drivers.of(name).disk_driver("viostor") == b"viostor.sys"


def test_hardware_that_windows_has_drivers_for_needs_none(tmp_path: Path) -> None:
    assert DriverFolder(tmp_path).missing("web01", Bus.AHCI) == []


def test_what_is_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = folder(tmp_path, "a.sys", "b.sys")
    monkeypatch.setattr(supplied, "MAX_FILE_BYTES", 4)
    with pytest.raises(RecoveryError, match=r"a\.sys is no driver"):
        drivers.of("web01")
    monkeypatch.setattr(supplied, "MAX_FILES", 1)
    with pytest.raises(RecoveryError, match="holds 2 drivers' files"):
        drivers.of("web01")
