"""Debian and Ubuntu disks that boot at home only: on an IDE disk called /dev/sda, with one network card.

Home is QEMU's `pc` with an IDE disk: the boot archive holds ATA drivers and nothing else, the root disk and all others
go by the kernel's names, and the network waits for one card's hardware address and name. Built once, and cached.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
CACHE = REPOSITORY / ".cache"
ANSWER = "walked on"
PORT = 8000
ROOT_UUID = "7e0b1d2c-3f4a-4b5c-8d6e-9f0a1b2c3d4e"
ESP_ID = "A1B2C3D4"
_MIB = 1 << 20
_ESP_MIB = 64
_DISK_MIB = 1536
_LEFT_OUT = (
    *(f"/usr/share/{folder}/*" for folder in ("doc", "man", "locale", "info", "lintian", "bash-completion")),
    *(
        f"/lib/modules/*/kernel/{folder}/*"
        for folder in ("sound", "drivers/gpu", "drivers/media", "drivers/infiniband")
    ),
    *(f"/lib/modules/*/kernel/drivers/{folder}/*" for folder in ("net/wireless", "staging", "iio", "isdn", "comedi")),
)
_GRUB_MODULES = ("ext2", "normal", "linux", "search", "search_fs_uuid", "configfile", "echo", "boot")
_RULES = 'SUBSYSTEM=="net", ACTION=="add", ATTR{address}=="52:54:00:0a:0b:0c", NAME="ens3"\n'
_UNIT = f"""[Unit]
Description=says that it is there
[Service]
ExecStart=/bin/busybox httpd -f -p {PORT} -h /srv
[Install]
WantedBy=multi-user.target
"""
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "systemd-pcrphase.service",
)


_PACKAGES = "systemd-sysv,udev,dbus,e2fsprogs,zstd,kmod,iproute2,grub-efi-amd64-bin"


@dataclass(frozen=True, slots=True)
class Distribution:
    """`packages` beside those of all; `archive`: (file, its text) that keeps all but ATA drivers out of the boot
    archive; `network`: (file, its text)."""

    name: str
    suite: str
    packages: str
    archive: tuple[str, str]
    network: tuple[str, str]
    mirror: str = ""


DEBIAN = Distribution(
    "debian",
    "bookworm",
    "linux-image-amd64,initramfs-tools,ifupdown,isc-dhcp-client,busybox",
    ("etc/initramfs-tools/modules", "ext4\natapi\nata_piix\nsd_mod\n"),
    ("etc/network/interfaces", "auto lo\niface lo inet loopback\nallow-hotplug ens3\niface ens3 inet dhcp\n"),
)
DRACUT = Distribution(
    "dracut",
    "bookworm",
    "linux-image-amd64,dracut,ifupdown,isc-dhcp-client,busybox",
    ("etc/dracut.conf.d/home.conf", 'hostonly="no"\ndrivers=" ext4 ata_piix sd_mod "\n'),
    DEBIAN.network,
)
"""Debian with the Red Hat family's way of making boot archives: its own mirrors are not always within reach."""
UBUNTU = Distribution(
    "ubuntu",
    "noble",
    "linux-image-virtual,initramfs-tools,netplan.io,busybox-static",
    ("etc/initramfs-tools/modules", "ext4\n"),
    (
        "etc/netplan/01-home.yaml",
        "network:\n  version: 2\n  renderer: networkd\n  ethernets:\n    home:\n      match:\n"
        '        macaddress: "52:54:00:0a:0b:0c"\n      set-name: ens3\n      dhcp4: true\n',
    ),
    "http://archive.ubuntu.com/ubuntu",
)
_UBUNTU_KEYS = "/pool/main/u/ubuntu-keyring/ubuntu-keyring_2021.03.26_all.deb"  # Debian has no package of them
_UBUNTU_KEYS_SHA256 = "0d0e7ed6b112f5d03eabf3c7eb01ebdacf9c57714b279e90495cfc58c8c4520f"


def missing() -> str | None:
    """Why the images cannot be built here, or None."""
    tools = ("mmdebstrap", "mke2fs", "sfdisk", "grub-mkimage", "mcopy", "mkfs.vfat", "depmod", "chroot")
    lacking = [tool for tool in tools if tool != "depmod" and shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "needs root: a chroot makes the boot archive"
    return f"needs {', '.join(lacking)}" if lacking else None


def base(distribution: Distribution) -> Path:
    """A tar file of the tree that all images hold, but for what names disks."""
    content = repr((distribution, _PACKAGES, _LEFT_OUT, _RULES, _UNIT, ANSWER, _MASKED)).encode()
    made = CACHE / f"elsewhere-{distribution.name}-{hashlib.sha256(content).hexdigest()[:16]}.tar"
    if made.exists():
        return made
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=CACHE) as folder:
        Path(folder).chmod(0o755)  # apt checks signatures as a user of its own
        extra = Path(folder, "extra")
        texts = {
            distribution.archive[0]: distribution.archive[1],
            "etc/initramfs-tools/conf.d/home": "MODULES=list\nCOMPRESS=zstd\n",
            distribution.network[0]: distribution.network[1],
            "etc/udev/rules.d/70-persistent-net.rules": _RULES,
            "etc/hostname": "elsewhere\n",
            "etc/systemd/system/hello.service": _UNIT,
            "srv/index.html": ANSWER,
        }
        for name, text in texts.items():
            path = extra / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        units = extra / "etc/systemd/system"
        (units / "multi-user.target.wants").mkdir()
        (units / "multi-user.target.wants/hello.service").symlink_to("/etc/systemd/system/hello.service")
        (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
        for name in _MASKED:
            (units / name).symlink_to("/dev/null")
        out = Path(folder, "base.tar")
        command = ["mmdebstrap", "--variant=minbase", "--quiet", "--format=tar", "--skip=output/dev"]
        command += [f"--include={_PACKAGES},{distribution.packages}", "--dpkgopt=force-confold"]
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        command += [f"--essential-hook=copy-in {extra}/etc {extra}/srv /"]
        command += [f"--aptopt={line}" for line in _apt_settings()]
        run(*command, distribution.suite, str(out), *_sources(distribution, Path(folder)))
        for older in CACHE.glob(f"elsewhere-{distribution.name}-*.tar"):
            older.unlink()
        out.rename(made)
    return made


def _sources(distribution: Distribution, folder: Path) -> list[str]:
    """Where mmdebstrap finds the packages, and what it trusts them by."""
    if not distribution.mirror:
        sources = Path("/etc/apt/sources.list.d/debian.sources")
        return [str(sources)] if sources.exists() else []
    package = folder / "keys.deb"
    with urllib.request.urlopen(distribution.mirror + _UBUNTU_KEYS, timeout=30) as answer:
        package.write_bytes(answer.read())
    assert hashlib.sha256(package.read_bytes()).hexdigest() == _UBUNTU_KEYS_SHA256
    run("dpkg-deb", "--extract", str(package), str(folder / "keys"))
    keys = folder / "keys/usr/share/keyrings/ubuntu-archive-keyring.gpg"
    suites = (distribution.suite, f"{distribution.suite}-updates")
    return [f"deb [signed-by={keys}] {distribution.mirror} {suite} main" for suite in suites]


def unpack(tree: Path, distribution: Distribution) -> Path:
    """The base as a folder, to build images from."""
    tree.mkdir()
    run(
        "tar",
        "--extract",
        "--preserve-permissions",
        "--numeric-owner",
        "--file",
        str(base(distribution)),
        "--directory",
        str(tree),
    )
    (tree / "dev").mkdir(exist_ok=True)
    return tree


def make_bios(tree: Path, image: Path) -> Path:
    """DOS partition table, GRUB in the gap after it, root on /dev/sda1."""
    _configure(tree, "/dev/sda1", "", "console=ttyS0")
    truncate(image, _DISK_MIB * _MIB)
    run("sfdisk", "--quiet", str(image), stdin="label: dos\n2048,,L,*\n")
    _fill_root(tree, image, 1, _DISK_MIB)
    core = image.with_suffix(".core")
    modules = ["biosdisk", "part_msdos", *_GRUB_MODULES]
    run("grub-mkimage", "-O", "i386-pc", "-o", str(core), "-p", "(hd0,msdos1)/boot/grub", *modules)
    with open(image, "r+b") as disk:
        disk.write(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes()[:440])
        disk.seek(512)
        disk.write(core.read_bytes())
    core.unlink()
    return image


def make_uefi(tree: Path, image: Path) -> Path:
    """GPT, an EFI partition whose only loader is Debian's own, root on /dev/sda2."""
    _configure(tree, "/dev/sda2", "/dev/sda1 /boot/efi vfat umask=0077 0 1\n", "quiet")
    truncate(image, _DISK_MIB * _MIB)
    run("sfdisk", "--quiet", str(image), stdin=f"label: gpt\n2048,{_ESP_MIB}M,U\n,,L\n")
    _fill_root(tree, image, 1 + _ESP_MIB, _DISK_MIB - 1)
    esp = image.with_suffix(".esp")
    loader = image.with_suffix(".efi")
    configuration = image.with_suffix(".cfg")
    truncate(esp, _ESP_MIB * _MIB)
    run("mkfs.vfat", "-i", ESP_ID, str(esp))
    modules = ["part_gpt", "fat", *_GRUB_MODULES]
    grub = str(tree / "usr/lib/grub/x86_64-efi")
    run("grub-mkimage", "-d", grub, "-O", "x86_64-efi", "-o", str(loader), "-p", "/EFI/debian", *modules)
    configuration.write_text(f"search.fs_uuid {ROOT_UUID} root\nconfigfile ($root)/boot/grub/grub.cfg\n")
    run("mmd", "-i", str(esp), "::EFI", "::EFI/debian")
    run("mcopy", "-i", str(esp), str(loader), "::EFI/debian/grubx64.efi")
    run("mcopy", "-i", str(esp), str(configuration), "::EFI/debian/grub.cfg")
    run("dd", f"if={esp}", f"of={image}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    for path in (esp, loader, configuration):
        path.unlink()
    return image


def overlay(image: Path, path: Path) -> Path:
    """A run's own volume over an image: a qcow2 file."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image), str(path))
    return path


def truncate(path: Path, size_bytes: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size_bytes)


def run(*command: str, stdin: str = "") -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    environment = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, umask=0o022)
    assert done.returncode == 0, f"{' '.join(command)[:300]}: {done.stderr[-2000:]}"
    return done.stdout


def _configure(tree: Path, root: str, mounts: str, options: str) -> None:
    kernel = next((tree / "boot").glob("vmlinuz-*")).name
    archive = kernel.replace("vmlinuz", "initrd.img")
    (tree / "etc/fstab").write_text(f"{root} / ext4 errors=remount-ro 0 1\n{mounts}")
    (tree / "boot/efi").mkdir(exist_ok=True)
    (tree / "boot/grub").mkdir(exist_ok=True)
    (tree / "boot/grub/grub.cfg").write_text(
        f"set timeout=0\nsearch --no-floppy --fs-uuid --set=root {ROOT_UUID}\n"
        f"menuentry 'Debian GNU/Linux' {{\n"
        f"  linux /boot/{kernel} root={root} ro mitigations=off {options}\n  initrd /boot/{archive}\n}}\n"
    )


def _fill_root(tree: Path, image: Path, begin_mib: int, end_mib: int) -> None:
    size = f"{(end_mib - begin_mib) * 1024}k"
    options = f"offset={begin_mib * _MIB}"
    run("mke2fs", "-q", "-t", "ext4", "-U", ROOT_UUID, "-E", options, "-d", str(tree), str(image), size)


def _apt_settings() -> list[str]:
    names = ("Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date")
    return [line for line in run("apt-config", "dump", "--no-empty", *names).splitlines() if re.search(r"\S", line)]


if __name__ == "__main__":
    print(base({"debian": DEBIAN, "ubuntu": UBUNTU, "dracut": DRACUT}[sys.argv[1]]))
