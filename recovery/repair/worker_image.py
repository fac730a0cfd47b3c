"""What a worker VM boots: a distribution's kernel and some of its modules, busybox, and what opens LVM and NTFS.

Made anew for each worker from files that this machine trusts; nothing of a guest's is in it.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from agent.protocol.errors import SiteError, ToolMissing
from recovery.repair import cpio
from recovery.sites.local.tools import tool

ENVIRONMENT = "UNDERSTUDY_WORKER"
"""A folder with boot/vmlinuz-*, lib/modules and busybox, laid out as on a machine; without it, this machine's own."""

_PACKAGES = "linux-image-cloud-amd64 busybox-static lvm2 ntfs-3g"
_PROGRAMS = ("sbin/lvm", "bin/ntfs-3g", "bin/ntfs-3g.probe", "bin/ntfsrecover")
_AT_START = ("virtio_pci", "virtio_blk", "virtio_console")
_ON_DEMAND = ("ext4", "xfs", "btrfs", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1", "nls_utf8", "fuse", "dm-mod")
_INIT = """#!/bin/busybox sh
# One shell command a line comes in through the port; its status, output and last words go back.
/bin/busybox mkdir -p /dev /proc /sys /guest
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
for module in $(cat /modules/start); do insmod /modules/$module.ko; done
while [ ! -e /sys/class/virtio-ports/vport?p1 ] && [ "${tries:=0}" -lt 200 ]; do sleep 0.02; tries=$((tries + 1)); done
exec 3<>/dev/$(basename /sys/class/virtio-ports/vport?p1)
echo ready >&3
while read -r line <&3; do
    eval "$line" >/out 2>/err </dev/null
    echo "$? $(stat -c %s /out) $(stat -c %s /err)" >&3
    cat /out /err >&3
done
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """`entries`: bin/busybox, bin/sh, and the drivers as modules/NAME.ko."""

    kernel: Path
    entries: list[cpio.Entry]
    loads: dict[str, tuple[str, ...]]
    """Driver -> what to load for it, in order; empty for what is built in. What is not named there is not to be had."""


@dataclass(frozen=True, slots=True)
class WorkerImage:
    kernel: Path
    archive: bytes
    loads: dict[str, tuple[str, ...]]
    """As in Parts."""


def check() -> None:
    """Is there what a worker is made of? Raises ToolMissing."""
    root = _root()
    _kernel(root)
    _busybox(root)


def missing_for_ntfs() -> list[str]:
    """The package without which workers cannot open what Windows is on. Raises nothing."""
    found = all((_root() / name).exists() for name in _PROGRAMS if "ntfs" in name)
    return [] if found else ["ntfs-3g"]


def build(brought: Sequence[cpio.Entry] = ()) -> WorkerImage:
    """`brought` are files to have beside the worker's own. Raises ToolMissing, SiteError."""
    root = _root()
    parts = pick((*_AT_START, *_ON_DEMAND))
    start = [name for driver in _AT_START for name in parts.loads[driver]]
    entries = [cpio.folder(name) for name in ("bin", "modules", "tmp")]
    entries += [
        cpio.Entry("init", stat.S_IFREG | 0o755, _INIT.encode()),
        *parts.entries,
        cpio.Entry("modules/start", stat.S_IFREG | 0o644, " ".join(dict.fromkeys(start)).encode()),
    ]
    with _readable():
        return WorkerImage(parts.kernel, cpio.pack([*entries, *_programs(root), *brought]), parts.loads)


def pick(drivers: Sequence[str]) -> Parts:
    """A kernel, busybox, and these drivers with all that they need. Raises ToolMissing, SiteError."""
    root = _root()
    with _readable():
        kernel, modules = _kernel(root)
        available = {_name(path): path for path in modules.rglob("*.ko*")}
        built_in = {_name(Path(line)) for line in (modules / "modules.builtin").read_text().split()}
        loads: dict[str, tuple[str, ...]] = {}
        contents: dict[str, bytes] = {}
        for driver in (_name(Path(name)) for name in drivers):
            if driver in built_in:
                loads[driver] = ()
            elif driver in available:
                loads[driver] = tuple(_closure(driver, available, contents))
        entries = [
            cpio.Entry("bin/busybox", stat.S_IFREG | 0o755, _busybox(root).read_bytes()),
            cpio.Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
        ]
        entries += [cpio.Entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, made) for name, made in contents.items()]
    return Parts(kernel, entries, loads)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (OSError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise SiteError(f"cannot make the worker for boot repair: {error}", f"reinstall {_PACKAGES}") from error


def _root() -> Path:
    return Path(os.environ.get(ENVIRONMENT, "/"))


def _kernel(root: Path) -> tuple[Path, Path]:
    """The newest kernel there whose modules can drive a worker, and the folder of these."""
    found = [(path, root / "lib/modules" / path.name.removeprefix("vmlinuz-")) for path in root.glob("boot/vmlinuz-*")]
    usable = [
        (kernel, modules)
        for kernel, modules in found
        if os.access(kernel, os.R_OK) and (modules / "modules.builtin").exists()
    ]
    if not usable:
        raise ToolMissing(
            f"boot repair needs a Linux kernel with its modules for its worker, and {root} has none to read",
            f"install it: apt-get install {_PACKAGES}; or unpack these packages and set {ENVIRONMENT} to the folder",
        )
    return max(usable, key=lambda pair: [int(part) for part in re.findall(r"\d+", pair[0].name)])


def _busybox(root: Path) -> Path:
    for path in (root / "bin/busybox", root / "usr/bin/busybox", Path("/bin/busybox")):
        if path.exists() and b"ld-linux" not in path.read_bytes()[:4096]:
            return path
    raise ToolMissing("boot repair needs a static busybox for its worker", "install it: apt-get install busybox-static")


def _name(path: Path) -> str:
    """The kernel's own name of a module's file."""
    return path.name.partition(".ko")[0].replace("-", "_")


def _closure(driver: str, available: dict[str, Path], contents: dict[str, bytes]) -> Iterator[str]:
    """What to load for a driver, in order; reads each module once into `contents`. Loading one twice does no harm."""
    if driver not in available:
        return  # built in
    if driver not in contents:
        contents[driver] = _plain(available[driver])
    wanted = [*_tagged(contents[driver], b"depends"), *_needed_softly(contents[driver])]
    for other in wanted:
        yield from _closure(other.replace("-", "_"), available, contents)
    yield driver


def _tagged(module: bytes, tag: bytes) -> list[str]:
    found = re.search(rb"\0" + tag + rb"=([\w,-]+)\0", module)
    return found[1].decode().split(",") if found else []


def _needed_softly(module: bytes) -> list[str]:
    found = re.search(rb"\0softdep=pre: ([\w -]+)\0", module)
    return found[1].decode().split() if found else []


def _plain(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(content).read()
    return content


def _programs(root: Path) -> Iterator[cpio.Entry]:
    """LVM's and NTFS's programs with their libraries, as far as they are installed: without one, only the disks that
    need it cannot be repaired."""
    libraries = [root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries)), "LC_ALL": "C"}
    needed: dict[str, Path] = {}
    for program in (root / name for name in _PROGRAMS):
        if not program.exists():
            continue
        listed = subprocess.run(
            [tool("ldd"), program], env=environment, capture_output=True, text=True, check=False
        ).stdout
        if "not found" in listed:
            continue
        yield cpio.Entry(f"bin/{program.name}", stat.S_IFREG | 0o755, program.read_bytes())
        for path in map(Path, re.findall(r"(/\S+) \(0x", listed)):
            needed[f"{'lib64' if path.name.startswith('ld-linux') else 'lib'}/{path.name}"] = path
    if needed:
        yield from (cpio.folder(name) for name in ("lib", "lib64"))
    for name, path in needed.items():
        yield cpio.Entry(name, stat.S_IFREG | 0o755, path.read_bytes())
