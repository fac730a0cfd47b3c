"""Boot repair as a run's step sees it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError, SiteError
from recovery.actions import RepairJob
from recovery.repair import worker_image
from recovery.repair.job import DIFF, BootRepair, _note
from recovery.repair.record import FileChange, Finding, RepairRecord
from recovery.repair.target import Bus
from recovery.repair.windows import edit
from recovery.repair.windows.supplied import DriverFolder
from tests.recovery.repair.images import overlay
from tests.recovery.repair.test_repair import inside, make_disk, make_tree, needs_tools


def job(volume: Path, server_id: str = "web01") -> RepairJob:
    return RepairJob(
        run_id="run-1", server="web 01", server_id=server_id, instance_id="i-1", volumes=(str(volume),), uefi=False
    )


@needs_tools
@pytest.mark.qemu
def test_what_cannot_be_repaired_fails_the_step_and_what_could_be_is_kept_for_review(
    worker_parts: None, tmp_path: Path
) -> None:
    point = make_disk(make_tree(tmp_path / "tree"), tmp_path / "point.raw")
    step = BootRepair(tmp_path / "repairs", lambda: "tcg", DriverFolder(tmp_path / "drivers"), Bus.AHCI)
    with pytest.raises(RecoveryError, match=r"web 01 \(Small.*Linux.*, ext4\): kernel .* has no driver ahci"):
        step(job(overlay(point, tmp_path / "volume.qcow2")))
    record = step.record("run-1", "web01")
    assert record is not None
    assert [finding.what for finding in record.unrepaired] == ["kernel 6.1.0-9-amd64 has no driver ahci"]
    assert "+UUID=" in (step.folder("run-1", "web01") / DIFF).read_text()


@needs_tools
@pytest.mark.qemu
def test_a_repair_that_is_stopped_leaves_no_scratch_no_record_and_the_volume_as_it_was(
    worker_parts: None, tmp_path: Path
) -> None:
    point = make_disk(make_tree(tmp_path / "tree"), tmp_path / "point.raw")
    volume = overlay(point, tmp_path / "volume.qcow2")
    before = volume.read_bytes()
    repairs = BootRepair(tmp_path / "repairs", lambda: "tcg", DriverFolder(tmp_path / "drivers"))
    with pytest.raises(RecoveryError, match="was stopped"):
        repairs(dataclasses.replace(job(volume), stopped=lambda: True))
    assert volume.read_bytes() == before
    assert repairs.record("run-1", "web01") is None
    assert not (repairs.folder("run-1", "web01") / "scratch").exists()


def test_a_step_says_what_was_repaired_and_why_or_that_nothing_was() -> None:
    ready = RepairRecord(system="Debian 12, ext4", target="virtio, BIOS")
    assert _note(ready) == "Debian 12, ext4 is ready as it is"
    found = (Finding("stop", "its archive lacks nvme", repaired=True), Finding("warn", "an old kernel lacks it too"))
    change = FileChange(path="/boot/initrd.img", before=b"", after=b"nvme")
    mended = RepairRecord(system="Debian 12, ext4", target="nvme, BIOS", findings=found, changes=(change,))
    assert _note(mended) == "Debian 12, ext4: repaired, because its archive lacks nvme"


def test_packages_that_a_windows_needs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repairs = BootRepair(tmp_path, lambda: "tcg", DriverFolder(tmp_path / "drivers"))
    for name in ("bin/ntfs-3g", "bin/ntfs-3g.probe", "bin/ntfsrecover"):
        assert "ntfs-3g" in repairs.missing_packages()
        monkeypatch.setenv(worker_image.ENVIRONMENT, str(tmp_path))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert "ntfs-3g" not in repairs.missing_packages()
    monkeypatch.setattr(edit, "_PYTHON", str(tmp_path / "no-python"))
    assert repairs.missing_packages() == ["python3-hivex"]


@needs_tools
@pytest.mark.qemu
def test_a_copy_becomes_a_machine_of_its_own_and_has_a_record_of_its_own(worker_parts: None, tmp_path: Path) -> None:
    """Copies are repaired side by side: in one folder each would remove what the other is at work on."""
    tree = make_tree(tmp_path / "tree")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    volume = overlay(make_disk(tree, tmp_path / "point.raw"), tmp_path / "volume.qcow2")
    repairs = BootRepair(tmp_path / "repairs", lambda: "tcg", DriverFolder(tmp_path / "drivers"))
    for other in ("i-2", "web01"):
        (repairs.folder("run-1", other) / "scratch").mkdir(parents=True)
    done = repairs(dataclasses.replace(job(volume), record="i-1", host_name="web01-clone-1"))
    assert "this copy gets its own: host name (web01-clone-1), machine id" in done["note"]
    assert inside(volume, "/etc/machine-id") == b""
    assert inside(volume, "/etc/hostname") == b"web01-clone-1\n"
    assert done["record"] == str(repairs.folder("run-1", "i-1"))
    assert all((repairs.folder("run-1", other) / "scratch").is_dir() for other in ("i-2", "web01"))


def test_so_many_workers_at_once_and_who_waits_gives_way(tmp_path: Path) -> None:
    repairs = BootRepair(tmp_path, lambda: "tcg", DriverFolder(tmp_path / "drivers"), at_once=2)
    one = job(tmp_path / "volume.qcow2")
    refused = pytest.raises(RecoveryError, match="was stopped before its turn came")
    third = dataclasses.replace(one, stopped=lambda: True)
    with repairs.turn(one), repairs.turn(one), refused, repairs.turn(third):
        pytest.fail("there were two already")
    with repairs.turn(one), repairs.turn(one):
        pass


def test_undoing_what_was_never_repaired_does_nothing_and_says_so(tmp_path: Path) -> None:
    repairs = BootRepair(tmp_path, lambda: "tcg", DriverFolder(tmp_path / "drivers"))
    undone = repairs.undo(job(tmp_path / "volume.qcow2"))
    assert undone == {"note": "0 changes of the boot repair were taken back", "undone": [], "left": []}


def test_a_name_that_would_lead_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot name a server"):
        BootRepair(tmp_path, lambda: "tcg", DriverFolder(tmp_path / "drivers")).record("run-1", "../../etc")
