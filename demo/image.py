"""Builds the demonstration's server: a small, real Debian 12 disk image with GRUB, systemd, the orders application
and understudy-agent inside. Nothing is mounted, so it works without root where user namespaces are allowed.

    python -m demo.image [--cache DIR]     builds it, or finds it in the cache, and prints its path

Two layers, each cached under a hash of what goes into it: the Debian tree (a tar file, a minute to make) and the disk
image (ten seconds more), so that a change of the agent costs only the second.
"""

from __future__ import annotations

import argparse
import io
import platform
import shlex
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from demo.building import (
    REPOSITORY,
    SUITE,
    BuildError,
    Report,
    files,
    hash_of,
    host_apt_settings,
    mirrors,
    replace,
    run,
)

HERE = REPOSITORY / "demo"
GRUB = Path("/usr/lib/grub/i386-pc")

PYTHON_VERSION = "3.11"  # the suite's
PACKAGES = (
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "systemd-sysv",
    "udev",
    "dbus",
    "python3",
    "e2fsprogs",
    "zstd",
)
LEFT_OUT = ("doc", "man", "locale", "i18n", "info", "lintian", "bash-completion")

DISK_BYTES = 1 << 30
PARTITION_OFFSET_BYTES = 1 << 20
FILESYSTEM_UUID = "5f1c0de0-0de5-4b1d-9e57-0a4de25beb01"
SYSTEMD = "/lib/systemd/system"
ENABLED = ("orders", "understudy-enroll", "understudy-agent", "systemd-networkd")
# Needless on a server that is booted many times under software emulation, where starting any process costs.
MASKED = HERE / "masked.txt"


def build(cache: Path, report: Report = lambda line: None) -> Path:
    """The image's path. `report` is told what is going on, a line at a time. Raises BuildError."""
    if platform.machine() != "x86_64":
        raise BuildError(f"the demonstration's server is x86-64, and this machine is {platform.machine()}")
    cache.mkdir(parents=True, exist_ok=True)
    base = cache / f"debian-{hash_of(_base_inputs())}.tar"
    image = cache / f"server-{hash_of([base.name.encode(), *_image_inputs()])}.raw"
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as folder:
        work = Path(folder)
        if not image.exists() and not base.exists():
            report("making a Debian tree with mmdebstrap (about a minute)")
            _make_base(work / "base.tar", work)
            replace(work / "base.tar", base, "debian-*.tar")
        if not image.exists():
            report("putting the agent and the application in, and making it boot")
            _make_image(base, work / "image.raw", work)
            replace(work / "image.raw", image, "server-*.raw")
    return image


def _make_base(out: Path, work: Path) -> None:
    overlay = work / "base-overlay.tar"
    _write_tar(
        overlay,
        [("etc/initramfs-tools", HERE / "guest/etc/initramfs-tools")],
        {
            "etc/initramfs-tools/conf.d/small": "MODULES=list\nCOMPRESS=zstd\n",
        },
    )
    command = ["mmdebstrap", "--variant=minbase", "--quiet", "--format=tar", "--skip=output/dev"]
    command += [f"--include={','.join(PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in LEFT_OUT]
    # initramfs-tools finds its configuration there before it is installed, and is to keep it
    command += ["--dpkgopt=force-confold", f"--essential-hook=tar-in {shlex.quote(str(overlay))} /"]
    command += [f"--aptopt={line}" for line in host_apt_settings()]
    command += ["--customize-hook=rm -f $1/etc/apt/apt.conf.d/99mmdebstrap $1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"]
    run([*command, SUITE, str(out), *mirrors()])


def _make_image(base: Path, image: Path, work: Path) -> None:
    tree = work / "tree"
    tree.mkdir()
    run(
        ["tar", "--extract", "--preserve-permissions", "--numeric-owner", "--file", base, "--directory", tree],
        owner=True,
    )
    try:
        _fill(tree, work)
        _write_disk(tree, image, work)
    finally:
        run(["rm", "-rf", tree], owner=True)  # what belongs to mapped users only the mapped root can remove


def _fill(tree: Path, work: Path) -> None:
    """Put all that is ours into the Debian tree."""
    wheels = work / "wheels"
    _install_wheels(wheels)
    kernel = next((tree / "boot").glob("vmlinuz-*")).name
    initrd = next((tree / "boot").glob("initrd.img-*")).name
    overlay = work / "overlay.tar"
    _write_tar(
        overlay,
        [
            ("", HERE / "guest"),
            ("etc/systemd/system", REPOSITORY / "agent/systemd"),
            ("opt/understudy-agent", wheels),
            ("opt/understudy-agent/agent", REPOSITORY / "agent"),
            ("opt/orders", HERE / "orders"),
        ],
        {
            "etc/hostname": "web01\n",
            "etc/fstab": f"UUID={FILESYSTEM_UUID} / ext4 errors=remount-ro 0 0\n",
            "boot/grub/grub.cfg": _grub_configuration(kernel, initrd),
        },
        links={
            **{f"etc/systemd/system/multi-user.target.wants/{name}.service": _unit(name) for name in ENABLED},
            **{f"etc/systemd/{name}": "/dev/null" for name in MASKED.read_text().split()},
            "etc/systemd/system/default.target": f"{SYSTEMD}/multi-user.target",
            "etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service": f"{SYSTEMD}/serial-getty@.service",
        },
    )
    run(
        ["tar", "--extract", "--preserve-permissions", "--numeric-owner", "--file", overlay, "--directory", tree],
        owner=True,
    )
    run(["mkdir", tree / "dev"], owner=True)  # empty: device nodes need real root, and the kernel brings its own
    run(["chroot", tree, "python3", "-m", "compileall", "-q", "/opt/understudy-agent", "/opt/orders"], owner=True)


def _unit(name: str) -> str:
    return f"{'/lib' if name.startswith('systemd-') else '/etc'}/systemd/system/{name}.service"


def _grub_configuration(kernel: str, initrd: str) -> str:
    return f"""set timeout=0
search --no-floppy --fs-uuid --set=root {FILESYSTEM_UUID}
menuentry 'Debian GNU/Linux' {{
  linux /boot/{kernel} root=UUID={FILESYSTEM_UUID} ro mitigations=off console=tty0 console=ttyS0,115200
  initrd /boot/{initrd}
}}
"""


def _install_wheels(folder: Path) -> None:
    """The agent's dependencies, as pyproject.toml names them, for the image's Python rather than this one."""
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux2014", "manylinux_2_28", "manylinux_2_34")]
    run([
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        f"--python-version={PYTHON_VERSION}", *platforms, "--only-binary=:all:", f"--target={folder}", *dependencies,
    ])  # fmt: skip


def _write_disk(tree: Path, image: Path, work: Path) -> None:
    """A disk with an MBR, GRUB in the gap after it, and one ext4 partition."""
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run(["sfdisk", "--quiet", image], stdin=f"label: dos\n{PARTITION_OFFSET_BYTES // 512},,L,*\n")
    run([
        "mke2fs", "-q", "-t", "ext4", "-L", "rootfs", "-U", FILESYSTEM_UUID, "-E", f"offset={PARTITION_OFFSET_BYTES}",
        "-d", tree, image, f"{(DISK_BYTES - PARTITION_OFFSET_BYTES) // 1024}k",
    ], owner=True)  # fmt: skip
    core = work / "core.img"
    modules = [
        "biosdisk",
        "part_msdos",
        "ext2",
        "normal",
        "linux",
        "search",
        "search_fs_uuid",
        "configfile",
        "echo",
        "boot",
    ]
    run(["grub-mkimage", "-O", "i386-pc", "-o", core, "-p", "(hd0,msdos1)/boot/grub", *modules])
    if core.stat().st_size > PARTITION_OFFSET_BYTES - 512:
        raise BuildError("GRUB's core image does not fit before the first partition")
    with image.open("r+b") as file:
        file.write((GRUB / "boot.img").read_bytes()[:440])  # the partition table follows
        file.seek(512)
        file.write(core.read_bytes())


def _write_tar(
    out: Path, folders: list[tuple[str, Path]], texts: dict[str, str], links: dict[str, str] | None = None
) -> None:
    """A tar file of folders and texts, all root's and readable by all; a script's execute bit is kept."""
    with tarfile.open(out, "w") as tar:
        for prefix, folder in folders:
            for path in files(folder):
                entry = tar.gettarinfo(path, str(Path(prefix, path.relative_to(folder))))
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = "root"
                entry.mode = 0o755 if entry.mode & 0o100 else 0o644
                with path.open("rb") as file:
                    tar.addfile(entry, file)
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o644, len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            tar.addfile(entry)


def _base_inputs() -> Iterator[bytes]:
    yield repr((SUITE, PACKAGES, LEFT_OUT)).encode()
    for path in files(HERE / "guest/etc/initramfs-tools"):
        yield path.read_bytes()


def _image_inputs() -> Iterator[bytes]:
    folders = [HERE / "guest", HERE / "orders", REPOSITORY / "agent"]
    for path in [
        Path(__file__),
        HERE / "building.py",
        REPOSITORY / "pyproject.toml",
        *(path for folder in folders for path in files(folder)),
    ]:
        yield str(path.relative_to(REPOSITORY)).encode()
        yield path.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the demonstration's server image, or find it in the cache.")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / ".cache", metavar="DIR")
    try:
        image = build(parser.parse_args().cache, lambda line: print(line, file=sys.stderr, flush=True))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
