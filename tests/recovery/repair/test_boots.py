"""The proof: disks that boot at home only are repaired, and answer over HTTP on other hardware."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from recovery.actions import ACTIONS, StepContext
from recovery.clock import SystemClock
from recovery.gates import HttpGate, gate_to_json
from recovery.repair.job import BootRepair
from recovery.repair.record import RepairRecord
from recovery.repair.repair import repair, undo
from recovery.repair.target import Bus, Firmware, Target
from recovery.repair.windows.supplied import DriverFolder
from recovery.runs import Run, RunKind, Step
from recovery.sites.contract import Devices, VolumeKey
from recovery.sites.local import LocalSite
from tests.recovery.memory_control import MemoryControl
from tests.recovery.repair import images
from tests.recovery.repair.booting import boot, firmware_missing

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.long, pytest.mark.timeout(900)]

BUSES = (Bus.VIRTIO, Bus.NVME, Bus.AHCI)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from unpacked(images.DEBIAN, tmp_path_factory)


@pytest.fixture(scope="module", params=[images.UBUNTU, images.DRACUT], ids=lambda distribution: distribution.name)
def relative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    for tree in unpacked(request.param, tmp_path_factory):
        yield images.make_bios(tree, tree.parent / "relative.raw")


def unpacked(distribution: images.Distribution, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if reason := images.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(distribution.name)
    yield images.unpack(folder / "tree", distribution)
    images.run("rm", "-rf", str(folder))


@pytest.fixture(scope="module")
def bios(tree: Path) -> Path:
    return images.make_bios(tree, tree.parent / "bios.raw")


@pytest.fixture(scope="module")
def uefi(tree: Path) -> Path:
    if reason := firmware_missing():
        pytest.skip(reason)
    return images.make_uefi(tree, tree.parent / "uefi.raw")


def answers(volume: Path, bus: Bus, firmware: Firmware, folder: Path) -> None:
    said, console = boot(volume, bus, firmware, folder, images.PORT)
    assert said == images.ANSWER, console[-3000:]


def repaired(volume: Path, bus: Bus, firmware: Firmware, folder: Path) -> RepairRecord:
    target = Target(bus=bus, firmware=firmware, serial_console=True)
    record = repair([volume], target, folder / "repair")
    assert record.changes
    assert record.unrepaired == ()
    assert repair([volume], target, folder / "again").findings == (), "what is ready is left alone"
    return record


def test_as_it_is_it_does_not_boot_elsewhere(bios: Path, tmp_path: Path) -> None:
    volume = images.overlay(bios, tmp_path / "volume.qcow2")
    said, console = boot(volume, Bus.VIRTIO, Firmware.BIOS, tmp_path, images.PORT)
    assert said == ""
    assert "/dev/sda1 does not exist" in console


@pytest.mark.parametrize("bus", BUSES)
def test_repaired_it_boots_by_bios(bios: Path, bus: Bus, worker_parts: None, tmp_path: Path) -> None:
    volume = images.overlay(bios, tmp_path / "volume.qcow2")
    repaired(volume, bus, Firmware.BIOS, tmp_path)
    answers(volume, bus, Firmware.BIOS, tmp_path)


@pytest.mark.parametrize("bus", BUSES)
def test_repaired_it_boots_by_uefi_that_never_saw_it(uefi: Path, bus: Bus, worker_parts: None, tmp_path: Path) -> None:
    volume = images.overlay(uefi, tmp_path / "volume.qcow2")
    record = repaired(volume, bus, Firmware.UEFI, tmp_path)
    assert "esp:/EFI/BOOT/BOOTX64.EFI" in [getattr(change, "path", "") for change in record.changes]
    answers(volume, bus, Firmware.UEFI, tmp_path)


def test_repaired_its_relatives_boot_from_nvme(relative: Path, worker_parts: None, tmp_path: Path) -> None:
    volume = images.overlay(relative, tmp_path / "volume.qcow2")
    repaired(volume, Bus.NVME, Firmware.BIOS, tmp_path)
    answers(volume, Bus.NVME, Firmware.BIOS, tmp_path)


def test_a_copy_comes_up_by_a_name_and_an_id_of_its_own(bios: Path, worker_parts: None, tmp_path: Path) -> None:
    volume = images.overlay(bios, tmp_path / "volume.qcow2")
    target = Target(bus=Bus.VIRTIO, firmware=Firmware.BIOS, serial_console=True)
    repair([volume], target, tmp_path / "repair", host_name="elsewhere-clone-1")
    said, console = boot(volume, Bus.VIRTIO, Firmware.BIOS, tmp_path, images.PORT)
    assert said == images.ANSWER, console[-3000:]
    assert "Hostname set to <elsewhere-clone-1>" in console


def test_undone_it_has_every_file_as_it_was_at_home(bios: Path, worker_parts: None, tmp_path: Path) -> None:
    volume = images.overlay(bios, tmp_path / "volume.qcow2")
    record = repaired(volume, Bus.NVME, Firmware.BIOS, tmp_path)
    report = undo([volume], tmp_path / "repair")
    assert report.left == []
    assert sorted(report.undone) == sorted(getattr(change, "path", "") for change in record.changes)
    for name in ("/boot/grub/grub.cfg", "/etc/fstab", "/etc/udev/rules.d/70-persistent-net.rules"):
        assert name in report.undone
    target = Target(bus=Bus.NVME, firmware=Firmware.BIOS, serial_console=True)
    anew = repair([volume], target, tmp_path / "anew")
    assert anew.changes == record.changes


@pytest.mark.parametrize("devices", [None, Devices.AHCI])
def test_a_drill_repairs_its_own_copy_and_the_point_stays_as_it_is(
    devices: Devices | None, bios: Path, worker_parts: None, tmp_path: Path
) -> None:
    site = LocalSite(tmp_path / "site", accel="tcg")
    key = VolumeKey("web01", 0)
    args: dict[str, Any] = {
        "server": "web01", "server_id": "web01", "point": "p-1", "volumes": 1, "instance_id": "i-1",
        "machine_id": "5f1c0de0-0de5-4b1d-9e57-0a4de25beb02", "cpus": 2, "memory_mib": 768, "network": "isolated",
        "ports": {str(images.PORT): 0}, "uefi": False, "devices": devices,
    }  # fmt: skip
    gate = gate_to_json(HttpGate(port=images.PORT, contains=images.ANSWER, timeout_seconds=280))
    steps = [Step(name=name, action=name, args=args) for name in ("repair", "launch")]
    steps.append(Step(name="gate", action="gate", args={**args, "gate": gate}))
    run = Run(id="run-1", tenant="default", kind=RunKind.DRILL, plan="web01", steps=steps)
    control = MemoryControl([], "web01")
    try:
        site.make_volume(key, bios.stat().st_size)
        head = next((tmp_path / "site").rglob("head.qcow2"))
        images.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", str(bios), str(head))
        site.snapshot(key, "p-1")
        point = Path(site.snapshot_location(key, "p-1"))
        before = blake3(point.read_bytes()).hexdigest()
        for position, step in enumerate(steps):
            context = StepContext(
                run=run,
                position=position,
                site=site,
                control=control,
                clock=SystemClock(),
                interrupt=threading.Event(),
                say=lambda text: None,
                repairer=BootRepair(tmp_path / "repairs", lambda: "tcg", DriverFolder(tmp_path / "drivers")),
            )
            step.result = ACTIONS[step.action](context)
        assert "repaired, because" in steps[0].result["note"]
        assert steps[1].result["devices"] == (devices or Devices.VIRTIO)
        assert blake3(point.read_bytes()).hexdigest() == before
    finally:
        site.end("i-1")
        site.close()
