"""A small server to boot: Debian's kernel and busybox on a disk with GRUB. It answers HTTP some seconds after its
start, also without hardware acceleration; writes to its disk what is sent to it; and ends at its power button."""

from __future__ import annotations

import os
import random
import stat
import tempfile
import urllib.request
from pathlib import Path

from agent.protocol.errors import UnderstudyError
from bench.measure import BenchError
from demo.building import BuildError, run
from demo.image import GRUB, PARTITION_OFFSET_BYTES
from recovery.repair import cpio, worker, worker_image
from recovery.repair.fetch import fetch

BLOCK_BYTES = 64 << 10
SYSTEM_BYTES = 48 << 20
"""What the guest boots from; what is behind that on its disk it leaves alone unless it is told to write there."""
MEMORY_MIB = 128
PORT = 80
_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net", "button", "evdev")
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "configfile", "boot")
# The address is the one that QEMU's own network has for its only guest.
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
for module in $(cat /modules/start); do insmod /modules/$module.ko; done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
echo "login:" >/dev/ttyS0
httpd -h /www
for button in /dev/input/event*; do (dd if=$button bs=24 count=1 2>/dev/null; sync; poweroff -f) & done
while :; do sleep 3600; done
"""
_WRITE = """#!/bin/sh
dd of=/dev/vda bs=64k seek=$QUERY_STRING oflag=seek_bytes conv=notrunc,fsync iflag=fullblock 2>/dev/null
printf 'Content-Type: text/plain\\r\\n\\r\\nwritten\\n'
"""
_MENU = """set timeout=0
menuentry 'bench' {
  linux /vmlinuz mitigations=off quiet console=tty0 console=ttyS0,115200
  initrd /initrd
}
"""
_TABLE = "label: dos\n{},{},L,*\n"


def build(image: Path, size_bytes: int, cache: Path) -> None:
    """Make the guest's disk; what is behind SYSTEM_BYTES cannot be compressed. Its kernel is one that boot repair would
    use as well, and from here on does: UNDERSTUDY_WORKER. Raises BenchError."""
    try:
        if worker.unavailable() is not None:
            fetch(cache / "worker")
            os.environ[worker_image.ENVIRONMENT] = str(cache / "worker")
        with tempfile.TemporaryDirectory(prefix="guest-", dir=image.parent) as folder:
            _write_disk(image, size_bytes, Path(folder))
    except (BuildError, UnderstudyError) as error:
        raise BenchError(f"the small server to boot: {error}") from None
    with image.open("r+b") as file:
        file.seek(SYSTEM_BYTES)
        rng = random.Random(1)
        for _ in range(SYSTEM_BYTES, size_bytes, BLOCK_BYTES):
            file.write(rng.randbytes(BLOCK_BYTES))


def send(address: str, offset_bytes: int, content: bytes) -> None:
    """Have the guest write this to its disk. `address`: HOST:PORT. Raises OSError."""
    url = f"http://{address}/cgi-bin/write?{offset_bytes}"
    with urllib.request.urlopen(url, data=content, timeout=120) as reply:
        if reply.read() != b"written\n":
            raise OSError(f"{url} did not write")


def _write_disk(image: Path, size_bytes: int, work: Path) -> None:
    parts = worker_image.pick(_DRIVERS)
    start = dict.fromkeys(name for driver in _DRIVERS for name in parts.loads.get(driver, ()))
    entries = [cpio.folder(name) for name in ("bin", "modules", "www", "www/cgi-bin")]
    entries += [
        *parts.entries,
        cpio.Entry("init", stat.S_IFREG | 0o755, _INIT.encode()),
        cpio.Entry("modules/start", stat.S_IFREG | 0o644, " ".join(start).encode()),
        cpio.Entry("www/health", stat.S_IFREG | 0o644, b"well\n"),
        cpio.Entry("www/cgi-bin/write", stat.S_IFREG | 0o755, _WRITE.encode()),
    ]
    tree = work / "tree"
    (tree / "grub").mkdir(parents=True)
    (tree / "initrd").write_bytes(cpio.pack(entries))
    (tree / "vmlinuz").write_bytes(parts.kernel.read_bytes())
    (tree / "grub/grub.cfg").write_text(_MENU)
    core = work / "core.img"
    run(["grub-mkimage", "-O", "i386-pc", "-o", core, "-p", "(hd0,msdos1)/grub", *_GRUB_MODULES])
    with image.open("wb") as file:
        file.truncate(size_bytes)
    partition_bytes = SYSTEM_BYTES - PARTITION_OFFSET_BYTES
    run(["sfdisk", "--quiet", image], stdin=_TABLE.format(PARTITION_OFFSET_BYTES // 512, partition_bytes // 512))
    offset = f"offset={PARTITION_OFFSET_BYTES}"
    run(["mke2fs", "-q", "-t", "ext4", "-E", offset, "-d", tree, image, f"{partition_bytes // 1024}k"])
    with image.open("r+b") as file:
        file.write((GRUB / "boot.img").read_bytes()[:440])  # the partition table follows
        file.seek(512)
        file.write(core.read_bytes())
