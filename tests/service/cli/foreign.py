"""Readers of other people's disk formats that had no part in writing them: libvmdk, libvhdi, 7-Zip."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# of the system's Python: Debian's packages of them belong to it
_PYTHON = "/usr/bin/python3"
_READ = """
import json, sys
kind, path, out = sys.argv[1:]
if kind == "vmdk":
    import pyvmdk
    disk = pyvmdk.handle()
    disk.open(path)
    disk.open_extent_data_files()
    said = {"disk_type": disk.disk_type, "parent": disk.parent_content_identifier}
else:
    import pyvhdi
    disk = pyvhdi.file()
    disk.open(path)
    said = {"disk_type": disk.disk_type, "sector_bytes": disk.bytes_per_sector}
left = said["size_bytes"] = disk.get_media_size()
with open(out, "wb") as file:
    while left:
        part = disk.read_buffer(min(left, 1 << 20))
        file.write(part)
        left -= len(part)
print(json.dumps(said))
"""
STREAM_OPTIMIZED = 8  # libvmdk's number for it
FIXED, DYNAMIC = 2, 3  # libvhdi's


def _lacking() -> list[str]:
    packages = {"import pyvmdk": "python3-libvmdk", "import pyvhdi": "python3-libvhdi"}
    lacking = [
        package
        for test, package in packages.items()
        if subprocess.run([_PYTHON, "-I", "-c", test], capture_output=True, check=False).returncode
    ]
    return [*lacking, *([] if shutil.which("7zz") else ["7zip"])]


needs_readers = pytest.mark.skipif(bool(lacking := _lacking()), reason=f"needs {', '.join(lacking)}")


@dataclass(frozen=True)
class Disk:
    """What a reader says of a disk, and the disk's content."""

    said: dict[str, Any]
    content: bytes


def read_vmdk(path: Path) -> Disk:
    return _read("vmdk", path)


def read_vhd(path: Path) -> Disk:
    """A VHD or a VHDX."""
    return _read("vhd", path)


def unpacked(path: Path) -> bytes:
    """The disk as 7-Zip sees it: it complains of what is not as the format says."""
    folder = path.with_suffix(".unpacked")
    done = subprocess.run(["7zz", "x", "-y", f"-o{folder}", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    (disk,) = folder.iterdir()
    return disk.read_bytes()


def _read(kind: str, path: Path) -> Disk:
    out = path.with_suffix(".read")
    command = [_PYTHON, "-I", "-c", _READ, kind, path, out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Disk(json.loads(done.stdout), out.read_bytes())
