"""Exports are what other hypervisors' tools take, and hold the point byte for byte."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.protocol.errors import StorageError
from service.cli import vmdk
from tests.faults.harness import Service, enrolled, served
from tests.faults.images import make_image
from tests.service.cli import foreign

MIB = 1 << 20
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
VMW = "{http://www.vmware.com/schema/ovf}"


@dataclass(frozen=True)
class Protected:
    """A server with a point of two volumes, which are image files that do not end at a whole MiB."""

    service: Service
    point: str
    disks: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    folder = tmp_path_factory.mktemp("exports")
    rng = random.Random(7)
    images = [
        make_image(folder / "system.raw", rng, 40 * MIB + 3 * 512),
        make_image(folder / "data.raw", rng, 5 * MIB + 7 * 512),
    ]
    with open(images[0], "r+b") as image:
        image.truncate(71 * MIB + 512)  # a stretch of zeros as long as a table of a VMDK tells of
        image.seek(71 * MIB)
        image.write(b"the last sector".ljust(512, b"."))
    with served(folder / "service") as service:
        agent = enrolled(folder / "agent", service, "web.01")
        agent.protect(*images)
        agent.push()
        (point,) = service.points("web.01")
        yield Protected(service, point["id"], (images[0].read_bytes(), images[1].read_bytes()))


def export(protected: Protected, image_format: str, out: Path, *more: str) -> str:
    done = protected.service.ask("export", protected.point, "--format", image_format, *more, out)
    assert done.code == 0, done.err
    return done.out


def whole_mib(content: bytes) -> bytes:
    return content + bytes(-len(content) % MIB)


@foreign.needs_readers
@pytest.mark.parametrize("volume", [0, 1])
def test_a_vmdk_is_a_stream_optimized_one_to_readers_that_did_not_write_it(
    protected: Protected, volume: int, tmp_path: Path
) -> None:
    said = export(protected, "vmdk", tmp_path / "web01.vmdk", "--volume", str(volume))
    wanted = whole_mib(protected.disks[volume])
    read = foreign.read_vmdk(tmp_path / "web01.vmdk")
    assert read.said == {"disk_type": foreign.STREAM_OPTIMIZED, "parent": 0xFFFFFFFF, "size_bytes": len(wanted)}
    assert read.content == wanted
    assert foreign.unpacked(tmp_path / "web01.vmdk") == wanted
    assert "vmkfstools -i web01.vmdk -d thin web-01.vmdk" in said
    assert "the others with --volume N" in said


@foreign.needs_readers
def test_a_vhdx_has_sectors_of_512_bytes_and_says_how_hyper_v_starts_from_it(
    protected: Protected, tmp_path: Path
) -> None:
    said = export(protected, "vhdx", tmp_path / "web01.vhdx")
    wanted = whole_mib(protected.disks[0])
    read = foreign.read_vhd(tmp_path / "web01.vhdx")
    assert read.said == {"disk_type": foreign.DYNAMIC, "sector_bytes": 512, "size_bytes": len(wanted)}
    assert read.content == wanted
    assert foreign.unpacked(tmp_path / "web01.vhdx") == wanted
    assert "New-VM -Name web-01 -Generation 1 -MemoryStartupBytes " in said
    assert r"-VHDPath 'C:\VMS\web01.vhdx'" in said


@foreign.needs_readers
def test_a_vhd_is_fixed_and_of_whole_mebibytes_as_azure_wants_it(protected: Protected, tmp_path: Path) -> None:
    said = export(protected, "vhd", tmp_path / "web01.vhd")
    wanted = whole_mib(protected.disks[0])
    read = foreign.read_vhd(tmp_path / "web01.vhd")
    assert read.said == {"disk_type": foreign.FIXED, "sector_bytes": 512, "size_bytes": len(wanted)}
    assert read.content == wanted
    assert foreign.unpacked(tmp_path / "web01.vhd") == wanted
    assert (tmp_path / "web01.vhd").stat().st_size == len(wanted) + 512
    assert "--blob-type PageBlob" in said


@foreign.needs_readers
def test_an_ovf_describes_the_whole_server_and_its_manifest_fits_its_files(
    protected: Protected, tmp_path: Path
) -> None:
    said = export(protected, "ovf", tmp_path / "web01.ovf")
    assert "ovftool --name=web-01 --datastore=DATASTORE --network=NETWORK " in said
    names = ["web01-disk1.vmdk", "web01-disk2.vmdk"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "web01.mf", "web01.ovf"]
    for name, disk in zip(names, protected.disks, strict=True):
        assert foreign.read_vmdk(tmp_path / name).content == whole_mib(disk)

    sums = dict(line.removeprefix("SHA256(").split(")= ") for line in (tmp_path / "web01.mf").read_text().splitlines())
    assert list(sums) == ["web01.ovf", *names]
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest

    envelope = ET.parse(tmp_path / "web01.ovf").getroot()
    files = {file.get(f"{OVF}id"): file for file in envelope.iter(f"{OVF}File")}
    disks = list(envelope.iter(f"{OVF}Disk"))
    assert [files[disk.get(f"{OVF}fileRef")].get(f"{OVF}href") for disk in disks] == names
    for disk, content in zip(disks, protected.disks, strict=True):
        file = files[disk.get(f"{OVF}fileRef")]
        assert int(file.get(f"{OVF}size", "")) == (tmp_path / file.get(f"{OVF}href", "")).stat().st_size
        assert int(disk.get(f"{OVF}capacity", "")) == len(whole_mib(content))
        assert str(disk.get(f"{OVF}format")).endswith("#streamOptimized")
    items = [{field.tag.removeprefix(RASD): field.text for field in item} for item in envelope.iter(f"{OVF}Item")]
    assert all(list(item) == sorted(item) for item in items), "the schema wants them in this order"
    (controller,) = [item for item in items if item["ResourceType"] == "20"]
    attached = [item for item in items if item["ResourceType"] == "17"]
    assert [item["HostResource"] for item in attached] == [f"ovf:/disk/{disk.get(f'{OVF}diskId')}" for disk in disks]
    assert {item["Parent"] for item in attached} == {controller["InstanceID"]}
    assert len({item["InstanceID"] for item in items}) == len(items)
    configuration = {entry.get(f"{VMW}key"): entry.get(f"{VMW}value") for entry in envelope.iter(f"{VMW}Config")}
    assert configuration["firmware"] == "bios"


def test_raw_and_qcow2_end_where_the_volume_ends(protected: Protected, tmp_path: Path) -> None:
    export(protected, "raw", tmp_path / "web01.raw", "--volume", "1")
    assert (tmp_path / "web01.raw").read_bytes() == protected.disks[1]
    document = protected.service.ask("export", protected.point, "--format", "qcow2", tmp_path / "x", "--json").document
    assert (document["volume"], document["size_bytes"]) == (0, len(protected.disks[0]))
    assert (document["files"], document["next"]) == ([str(tmp_path / "x")], [])


def test_what_cannot_be_an_export_is_one_line_and_leaves_nothing(protected: Protected, tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> str:
        return protected.service.ask("export", protected.point, "--format", *arguments).complaint

    assert "is the whole server" in refused("ovf", "--volume", "0", tmp_path / "web01.ovf")
    assert "name it like web01.ovf" in refused("ovf", tmp_path / "web01.ova")
    assert "has no volume 2" in refused("vmdk", "--volume", "2", tmp_path / "web01.vmdk")
    assert list(tmp_path.iterdir()) == []


def test_a_vmdk_that_outgrows_its_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmdk, "_MAX_SECTORS", 300)
    disk = io.BytesIO(random.Random(1).randbytes(4 * vmdk.GRAIN_BYTES))
    with pytest.raises(StorageError, match="2 TiB"):
        vmdk.write_stream_optimized(disk, 4 * vmdk.GRAIN_BYTES, io.BytesIO(), "x", "0" * 64, lambda _: None)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("virt-v2v") is None, reason="needs virt-v2v")
def test_virt_v2v_takes_the_ovf_for_a_vmware_machine_and_refuses_one_that_was_altered(
    protected: Protected, tmp_path: Path
) -> None:
    export(protected, "ovf", tmp_path / "web01.ovf")
    archive = tmp_path / "web01.ova"
    names = ["web01.ovf", "web01.mf", "web01-disk1.vmdk", "web01-disk2.vmdk"]

    def look() -> subprocess.CompletedProcess[str]:
        subprocess.run(["tar", "--format=ustar", "-C", tmp_path, "-cf", archive, *names], check=True)
        command = ["virt-v2v", "--print-source", "-i", "ova", archive]
        env = {**os.environ, "LIBGUESTFS_BACKEND": "direct"}
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    seen = look()
    assert seen.returncode == 0, seen.stderr
    for line in (
        "source name: web.01",
        "hypervisor type: vmware",
        "firmware: bios",
        "0 [sata]",
        "1 [sata]",
        "[e1000e]",
    ):
        assert line in seen.stdout
    with open(tmp_path / names[-1], "ab") as disk:
        disk.write(b"one byte more")
    refused = look()
    assert refused.returncode != 0
    assert "checksum" in refused.stderr
