"""What only the local site promises: plain files, modes, ports, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol.errors import SiteError, StorageError, ToolMissing
from agent.protocol.serials import volume_serial
from recovery.sites.contract import Devices, InstanceSpec, InstanceState, NetworkMode, VolumeKey
from recovery.sites.local import LocalSite, accel, qcow2, qemu
from recovery.sites.local.tools import await_exit, command_line
from tests.patience import PATIENCE_SECONDS, eventually
from tests.ports import free_port
from tests.recovery.sites.conftest import KEY, content, make_point, write

Specs = Callable[..., InstanceSpec]


def arguments_of(root: Path, instance_id: str) -> list[str]:
    return command_line(int((root / "instances" / instance_id / "pid").read_text()))


def test_a_point_is_a_plain_qcow2_file_that_qemu_img_turns_into_the_exact_bytes(
    local_site: LocalSite, tmp_path: Path
) -> None:
    make_point(local_site, KEY, "p1", (0, b"1" * 100_000))
    make_point(local_site, KEY, "p2", (65_536, b"2" * 100_000))
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "site" / "web01" / "volume-0", moved)
    for name in ("p1", "p2"):
        raw = tmp_path / "raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", moved / f"{name}.qcow2", raw], check=True)
        assert raw.read_bytes() == content(local_site, KEY, name)


def test_point_files_cannot_be_written_by_accident(local_site: LocalSite) -> None:
    for name in ("p1", "p2", "p3"):
        make_point(local_site, KEY, name, (0, name.encode()))
    local_site.make_volume(KEY, 1 << 20)
    local_site.delete_snapshot(KEY, "p2")
    local_site.delete_snapshot(KEY, "p3")
    path = Path(local_site.snapshot_location(KEY, "p1"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE(path.with_name("head.qcow2").stat().st_mode) == 0o644


def test_zeroed_ranges_give_their_space_back(local_site: LocalSite, tmp_path: Path) -> None:
    local_site.make_volume(KEY, 16 << 20)
    head = tmp_path / "site" / "web01" / "volume-0" / "head.qcow2"
    io = local_site.open_volume(KEY)
    io.write(0, b"x" * (16 << 20))
    io.flush()
    used = head.stat().st_blocks
    io.zero(0, 16 << 20)
    io.flush()
    io.close()
    assert head.stat().st_blocks < used // 4


def test_a_volume_whose_size_is_no_multiple_of_a_sector_gets_zeros_at_its_end(local_site: LocalSite) -> None:
    local_site.make_volume(KEY, 1_000_001)
    assert content(local_site, KEY) == bytes(1_000_448)


def test_the_folder_may_lie_deeper_than_a_sockets_path_can_say(tmp_path: Path) -> None:
    site = LocalSite(tmp_path / ("d" * 100) / ("e" * 100), accel="tcg")
    make_point(site, KEY, "p1", (0, b"1"))
    assert content(site, KEY, "p1")[:1] == b"1"
    site.close()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 300, "a\0b"])
def test_names_that_could_mean_other_files_are_refused(local_site: LocalSite, name: str) -> None:
    for refused in (
        lambda: local_site.make_volume(VolumeKey(name, 0), 512),
        lambda: local_site.open_snapshot(KEY, name),
        lambda: local_site.write_document("web01", name, b""),
        lambda: local_site.watch(name),
    ):
        with pytest.raises(SiteError):
            refused()


def test_reading_and_writing_outside_the_volume_is_refused(local_site: LocalSite) -> None:
    local_site.make_volume(KEY, 4096)
    io = local_site.open_volume(KEY)
    for refused in (
        lambda: io.read(4095, 2),
        lambda: io.read(-1, 1),
        lambda: io.write(4096, b"x"),
        lambda: io.zero(0, 4097),
    ):
        with pytest.raises(StorageError, match="outside"):
            refused()
    assert io.read(4095, 1) == b"\0"
    io.close()


def test_a_damaged_point_file_is_named(local_site: LocalSite) -> None:
    make_point(local_site, KEY, "p1", (0, b"1"))
    path = Path(local_site.snapshot_location(KEY, "p1"))
    path.chmod(0o644)
    path.write_bytes(b"not a qcow2 file")
    for refused in (lambda: local_site.snapshots(KEY), lambda: local_site.open_snapshot(KEY, "p1")):
        with pytest.raises(StorageError, match=r"p1\.qcow2"):
            refused()


def test_missing_tools_are_named_with_the_package_to_install(
    local_site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="qemu-img is not installed") as caught:
        local_site.make_volume(KEY, 512)
    assert "apt-get install" in caught.value.hint


@pytest.mark.qemu
def test_an_isolated_instance_has_no_way_out_and_its_identity_is_what_was_asked(
    local_site: LocalSite, tmp_path: Path, bootable: Specs
) -> None:
    local_site.launch(bootable("isolated", ports={80: 0}))
    local_site.launch(bootable("real", network=NetworkMode.REAL))
    isolated, real = (arguments_of(tmp_path / "site", name) for name in ("isolated", "real"))
    assert any(part.startswith("user,") and ",restrict=on" in part for part in isolated)
    assert not any("restrict" in part for part in real)
    assert isolated[isolated.index("-uuid") + 1] == bootable().machine_id


@pytest.mark.qemu
@pytest.mark.qemu
def test_a_guest_boots_from_ahci_disks_with_an_e1000e_card_where_it_is_to(
    local_site: LocalSite, bootable: Specs, tmp_path: Path
) -> None:
    """Eight disks: more than the machine's own controller has ports for."""
    keys = [KEY, *(VolumeKey("web01", index) for index in range(1, 8))]
    for key in keys[1:]:
        make_point(local_site, key, "boot")
    serials = [f"disk-{index}" for index in range(8)]
    made = dataclasses.replace(bootable(serials=serials), points=[(key, "boot") for key in keys])
    local_site.make_instance(made)  # as boot repair does, before it has found out what the guest has drivers for
    local_site.launch(dataclasses.replace(made, devices=Devices.AHCI))
    eventually(lambda: "written" in local_site.console("i-1"))  # to its disk; from then on it hears the power button
    arguments = arguments_of(tmp_path / "site", "i-1")
    assert [argument.partition(",drive")[0] for argument in arguments if argument.startswith("ide-hd")] == [
        *(f"ide-hd,bus=ide.{port}" for port in range(6)),
        "ide-hd,bus=ahci1.0",
        "ide-hd,bus=ahci1.1",
    ]
    assert "e1000e,netdev=net0" in arguments

    local_site.stop("i-1")
    eventually(lambda: local_site.watch("i-1").state is InstanceState.STOPPED)
    local_site.launch(made)
    again = arguments_of(tmp_path / "site", "i-1")
    assert not [argument for argument in again if "virtio-blk" in argument], "as it was first started"


def test_a_volume_has_the_serial_number_that_was_asked_for_also_after_a_restart(
    local_site: LocalSite, bootable: Specs, tmp_path: Path
) -> None:
    serial = volume_serial(KEY.server_id, "/dev/sda")
    for _ in range(2):
        local_site.launch(bootable("named", serials=[serial]))
        disks = [part for part in arguments_of(tmp_path / "site", "named") if part.startswith("virtio-blk-pci,")]
        assert [f",serial={serial}" in disk for disk in disks] == [True]
        os.kill(int((tmp_path / "site/instances/named/pid").read_text()), signal.SIGKILL)
        eventually(lambda: local_site.watch("named").state is InstanceState.STOPPED)
    local_site.launch(bootable("nameless"))
    assert not any(",serial=" in part for part in arguments_of(tmp_path / "site", "nameless"))


@pytest.mark.qemu
def test_a_port_that_is_taken_is_told_in_qemus_words_and_the_instance_can_be_ended(
    local_site: LocalSite, bootable: Specs
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(SiteError, match="forwarding rule"):
            local_site.launch(bootable(ports={80: port}))
        assert [instance.instance_id for instance in local_site.instances()] == ["i-1"]
    local_site.launch(bootable(ports={80: port}))
    local_site.end("i-1")
    assert local_site.instances() == []


@pytest.mark.qemu
def test_a_port_chosen_by_us_that_somebody_takes_meanwhile_is_chosen_anew(
    local_site: LocalSite, tmp_path: Path, bootable: Specs
) -> None:
    spec = bootable(ports={80: 0})
    first = local_site.launch(spec).addresses[80]
    local_site.stop("i-1")
    pid = int((tmp_path / "site" / "instances" / "i-1" / "pid").read_text())
    os.kill(pid, 9)
    await_exit(pid, PATIENCE_SECONDS)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(first)
        taken.listen()
        assert local_site.launch(spec).addresses[80] != first


def test_an_instance_too_big_for_this_machine_is_refused_before_anything_is_made(
    local_site: LocalSite, bootable: Specs
) -> None:
    from dataclasses import replace

    with pytest.raises(SiteError, match="memory"):
        local_site.launch(replace(bootable(), memory_mib=1 << 24))
    assert local_site.instances() == []


def test_uefi_without_firmware_names_the_package(
    local_site: LocalSite, bootable: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "_FIRMWARE_FOLDER", tmp_path / "none")
    with pytest.raises(ToolMissing, match="UEFI") as caught:
        local_site.launch(bootable(uefi=True))
    assert "ovmf" in caught.value.hint


@pytest.mark.qemu
def test_the_probe_runs_under_software_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "_PROBE_SECONDS", PATIENCE_SECONDS)
    assert accel.runs_a_guest("tcg")


@pytest.mark.qemu
@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm to be tried")
def test_kvm_is_tried_once_and_what_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(accel.ENVIRONMENT, raising=False)
    found = accel.choose(tmp_path, None)
    assert json.loads((tmp_path / "accel.json").read_text())["accel"] == found
    monkeypatch.setattr(accel, "runs_a_guest", lambda _: pytest.fail("it was tried again"))
    assert accel.choose(tmp_path, None) == found


def test_an_accelerator_can_be_forced_but_not_invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accel.ENVIRONMENT, "kvm")
    assert accel.choose(tmp_path, None) == "kvm"
    assert accel.choose(tmp_path, "tcg") == "tcg"
    monkeypatch.setenv(accel.ENVIRONMENT, "warp")
    with pytest.raises(SiteError, match="warp"):
        accel.choose(tmp_path, None)


@pytest.mark.skipif(shutil.which("as") is None or shutil.which("ld") is None, reason="needs binutils")
def test_the_probes_bytes_are_what_its_source_says(tmp_path: Path) -> None:
    source = Path(accel.__file__).with_name("probe.S")
    subprocess.run(["as", "-o", tmp_path / "o", source], check=True)
    subprocess.run(
        ["ld", "-e", "0", "-Ttext", "0", "--oformat", "binary", "-o", tmp_path / "sector", tmp_path / "o"], check=True
    )
    assert (tmp_path / "sector").read_bytes() == accel._SECTOR


def test_a_port_that_somebody_listens_on_speaks_against_a_launch(
    local_site: LocalSite, bootable: Callable[..., InstanceSpec]
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert local_site.objections(bootable(ports={80: port})) == [f"port {port} of this machine is in use"]
    assert local_site.objections(bootable(ports={80: port})) == []


@pytest.mark.parametrize("address", ["10.0.0.1/31", "fe80::1/64", "10.0.0.1/32"])
def test_an_address_that_a_guest_cannot_be_given_here_is_refused(
    local_site: LocalSite, bootable: Callable[..., InstanceSpec], address: str
) -> None:
    assert "cannot give a guest the address" in local_site.objections(bootable(address=address))[0]
    with pytest.raises(SiteError, match="cannot give a guest the address"):
        local_site.launch(bootable(address=address))


@pytest.mark.qemu
@pytest.mark.parametrize("address", ["192.0.2.1/24", "10.200.0.2/29"])
def test_a_guest_with_an_address_of_its_own_starts(
    local_site: LocalSite, bootable: Callable[..., InstanceSpec], address: str
) -> None:
    """QEMU takes the network only when gateway, name server and guest are different addresses of it."""
    launched = local_site.launch(bootable(address=address, ports={80: 0}))
    assert launched.state is InstanceState.RUNNING, launched.detail


@pytest.mark.parametrize("window_blocks", [1, 3, 7])
def test_what_a_working_state_holds_is_the_same_however_much_is_asked_for_at_once(
    local_site: LocalSite, window_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, block = random.Random(window_blocks), 65536
    size = 64 * block + 1536
    make_point(local_site, KEY, "p0", (0, b"x" * size), size=size)
    local_site.make_volume(KEY, size)
    written = sorted(rng.sample(range(65), 30))
    write(local_site, KEY, *((at * block, b"y" * min(block, size - at * block)) for at in written))
    monkeypatch.setattr(qcow2, "WINDOW_BYTES", window_blocks * block)
    changes = local_site.changes(KEY)
    assert [at for at in range(65) if any(e.offset <= at * block < e.offset + e.length for e in changes)] == written
    assert changes == qcow2.merged(changes)
