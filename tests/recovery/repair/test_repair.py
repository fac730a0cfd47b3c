"""Repair and its undoing on real volumes, in a real worker; small disks, which nobody boots."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from agent.protocol.errors import RecoveryError, StorageError
from recovery.repair import repair as module
from recovery.repair.record import FileChange, RepairRecord, UndoReport, load, save
from recovery.repair.repair import repair, undo
from recovery.repair.target import Bus, Firmware, Target
from recovery.sites.local import qcow2
from tests.recovery.repair.folder import FolderFiles
from tests.recovery.repair.images import ROOT_UUID, overlay, run, truncate
from tests.recovery.repair.linux.test_initramfs import ARCHIVE, DEPENDENCIES, MODULES, archive

NVME = Target(bus=Bus.NVME, firmware=Firmware.BIOS)
MIB = 1 << 20
needs_tools = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("mke2fs", "debugfs", "sfdisk", "qemu-system-x86_64")),
    reason="needs mke2fs, debugfs, sfdisk and QEMU",
)
TEXTS = {
    "/etc/os-release": 'PRETTY_NAME="Small\x1b]0;Linux\x07"\nID=debian\n',
    "/etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n",
    "/etc/network/interfaces": "auto ens3\niface ens3 inet dhcp\n",
    "/etc/udev/rules.d/70-persistent-net.rules": 'SUBSYSTEM=="net", ATTR{address}=="52:54:00:0:0:1", NAME="ens3"\n',
    "/boot/grub/grub.cfg": "linux /boot/vmlinuz root=/dev/sda1 ro\n",
    f"{MODULES}/modules.dep": DEPENDENCIES,
    f"{MODULES}/modules.builtin": "",
    **{f"{MODULES}/{line.partition(':')[0]}": f"module {line}" for line in DEPENDENCIES.splitlines()},
}


def make_tree(folder: Path) -> Path:
    FolderFiles(folder, TEXTS).write(ARCHIVE, gzip.compress(archive("drivers/ata/ata_piix.ko")))
    (folder / "etc/fstab").chmod(0o640)
    return folder


def make_disk(tree: Path, image: Path) -> Path:
    """One ext4 partition with the tree, and something for a BIOS to start."""
    truncate(image, 32 * MIB)
    run("sfdisk", "--quiet", str(image), stdin="label: dos\n2048,,L,*\n")
    run("mke2fs", "-q", "-t", "ext4", "-U", ROOT_UUID, "-E", f"offset={MIB}", "-d", str(tree), str(image), "31m")
    with open(image, "r+b") as disk:
        disk.write(b"\xeb\xfe")
    return image


def inside(volume: Path, path: str) -> bytes:
    """A file's content in a volume's first partition, read without a worker."""
    raw = volume.with_suffix(".raw")
    run("qemu-img", "convert", "-O", "raw", str(volume), str(raw))
    out = raw.with_suffix(".out")
    run("debugfs", "-R", f"dump {path} {out}", f"{raw}?offset={MIB}")
    content = out.read_bytes()
    for made in (raw, out):
        made.unlink()
    return content


@needs_tools
@pytest.mark.qemu
def test_a_replica_is_repaired_and_every_file_goes_back_to_what_it_was(
    worker_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = make_disk(make_tree(tmp_path / "tree"), tmp_path / "point.raw")
    before = hashlib.sha256(point.read_bytes()).hexdigest()
    volume = overlay(point, tmp_path / "volume.qcow2")

    # cut off between the record and the merge: it is carried to its end
    with monkeypatch.context() as broken:
        broken.setattr(qcow2, "merge_down", _fails)
        with pytest.raises(StorageError):
            repair([volume], NVME, tmp_path / "run")
    assert qcow2.allocated(volume) == [], "until all is done the volume is as it was"
    record = repair([volume], NVME, tmp_path / "run")

    assert record.system == "Small\ufffd]0;Linux\ufffd, ext4", "a terminal obeys nothing of a guest's"
    assert record.unrepaired == ()
    assert load(tmp_path / "run") == record
    assert inside(volume, "/etc/fstab").decode() == f"UUID={ROOT_UUID} / ext4 defaults 0 1\n"
    assert f"-{TEXTS['/etc/fstab']}+UUID={ROOT_UUID} / ext4" in record.diff()
    assert hashlib.sha256(point.read_bytes()).hexdigest() == before, "a point never changes"

    assert undo([volume], tmp_path / "run").left == []
    for path in ("/etc/fstab", "/boot/grub/grub.cfg", "/etc/udev/rules.d/70-persistent-net.rules"):
        assert inside(volume, path).decode() == TEXTS[path]
    assert inside(volume, ARCHIVE) == (tmp_path / f"tree{ARCHIVE}").read_bytes()
    assert sorted(path.name for path in (tmp_path / "run").glob("*") if len(path.name) != 64) == [
        "repair.json",
        "undone.json",
    ]


@needs_tools
@pytest.mark.qemu
def test_links_pipes_and_devices_in_an_image_lead_nowhere(worker_parts: None, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    point = make_disk(tree, tmp_path / "point.raw")
    commands = [
        "rm /boot/grub/grub.cfg",
        "symlink /boot/grub/grub.cfg ../../../../../../init",  # the worker's own
        "symlink /etc/crypttab /proc/1/environ",
        "symlink /boot/grub/custom.cfg /boot/grub/custom.cfg",  # itself
        "symlink /etc/kernel /",
        "cd /boot/grub",
        "mknod menu.lst p",
        "mknod grubenv b 254 0",  # the worker's first disk
        "cd /etc/network",
        "rm interfaces",
        "symlink interfaces /run/.worker/busybox",
    ]
    script = tmp_path / "commands"
    script.write_text("\n".join(commands) + "\n")
    run("debugfs", "-w", "-f", str(script), f"{point}?offset={MIB}")
    record = repair([overlay(point, tmp_path / "volume.qcow2")], NVME, tmp_path / "run")
    changed = [getattr(change, "path", "") for change in record.changes]
    assert sorted(changed) == sorted(["/etc/fstab", "/etc/udev/rules.d/70-persistent-net.rules", ARCHIVE])
    assert not (tmp_path / "run" / "scratch").exists()


@needs_tools
@pytest.mark.qemu
def test_a_disk_that_is_no_systems_or_is_damaged_is_one_clear_error(worker_parts: None, tmp_path: Path) -> None:
    image = make_disk(make_tree(tmp_path / "tree"), tmp_path / "point.raw")
    with open(image, "r+b") as disk:
        disk.seek(MIB + 1024 + 0x50)
        disk.write(bytes(range(256)) * 32)  # what is left of the superblock still says ext4
        disk.seek(MIB + 1024 + 0x38)
        disk.write(b"\x53\xef")
    with pytest.raises(RecoveryError, match=r"no system to repair was found on the volumes \(they hold: ext4\)"):
        repair([overlay(image, tmp_path / "volume.qcow2")], NVME, tmp_path / "run")
    assert not (tmp_path / "run" / "repair.json").exists()


def test_what_was_changed_since_the_repair_is_left_as_it_is(tmp_path: Path) -> None:
    files = FolderFiles(tmp_path, {"/a": "repaired", "/b": "repaired, then edited", "/c": "kept, and more"})
    report = UndoReport()
    for change in (
        FileChange(path="/a", before=b"as it was", after=b"repaired"),
        FileChange(path="/b", before=b"as it was", after=b"repaired"),
        FileChange(path="/c", before=b"", after=b", and more", kept_bytes=4),
        FileChange(path="/d", before=b"removed", after=None),
    ):
        module._undo_one(files, change, report)
    assert [files.read(path) for path in ("/a", "/b", "/c", "/d")] == [
        b"as it was",
        b"repaired, then edited",
        b"kept",
        b"removed",
    ]
    assert report == UndoReport(undone=["/a", "/c", "/d"], left=["/b: it was changed since the repair"])


def test_a_record_comes_back_as_it_was_kept_and_an_altered_one_is_refused(tmp_path: Path) -> None:
    changes = (
        FileChange(path="/text", before=b"a\n", after=b"b\n", why="why"),
        FileChange(path="/bytes", before=b"\xff\0", after=None),
        FileChange(path="/long", before=b"", after=bytes(100_000), kept_bytes=7, mode=0o600),
    )
    record = RepairRecord(system="s", target="t", changes=changes)
    save(record, tmp_path)
    assert load(tmp_path) == record
    assert load(tmp_path / "elsewhere") is None
    (long,) = [path for path in tmp_path.iterdir() if path.name != "repair.json"]
    long.write_bytes(bytes(99_999))
    with pytest.raises(StorageError, match="was altered"):
        load(tmp_path)
    long.unlink()
    with pytest.raises(StorageError, match="misses a file"):
        load(tmp_path)
    document = json.loads((tmp_path / "repair.json").read_text())
    document["changes"][2]["after"]["blake3"] = "../../etc/passwd"
    (tmp_path / "repair.json").write_text(json.dumps(document))
    with pytest.raises(StorageError):
        load(tmp_path)


def _fails(path: Path, into: Path) -> None:
    raise StorageError(f"cannot merge {path.name}")
