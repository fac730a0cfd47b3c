"""The rescue image: the Debian tree, the boot archive, the medium."""

from __future__ import annotations

import os
import platform
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import zstandard

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
from recovery.repair.cpio import Entry, folder, pack
from rescue.picking import entry, kernel, modules, programs, python_packages

HERE = REPOSITORY / "rescue"
PACKAGES = ("busybox-static", "kmod", "linux-image-amd64", "python3.11")
COMPRESSION_LEVEL = 12
_GRUB = """set timeout=2
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
menuentry 'Understudy rescue' {{
  linux /boot/vmlinuz console=tty0 console=ttyS0,115200 quiet mitigations=off{url}
  initrd /boot/initrd
}}
"""


def build(out: Path, cache: Path, url: str | None = None, report: Report = lambda line: None) -> None:
    """Make `out`, which appears whole or not. `url`: the service's, built in. Raises BuildError."""
    if platform.machine() != "x86_64":
        raise BuildError(f"the rescue image is for x86-64, and this machine is {platform.machine()}")
    packed = boot_archive(cache, report)
    kernel_file = packed.with_suffix(".kernel")
    report("making the medium")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rescue-", dir=out.parent) as made:
        medium = Path(made, "medium")
        (medium / "boot/grub").mkdir(parents=True)
        os.link(packed, medium / "boot/initrd")
        os.link(kernel_file, medium / "boot/vmlinuz")
        argument = f" understudy.url={url}" if url else ""
        (medium / "boot/grub/grub.cfg").write_text(_GRUB.format(url=argument))
        image = Path(made, "image.iso")
        run(["grub-mkrescue", "--compress=xz", "-o", image, medium, "--", "-volid", "UNDERSTUDY_RESCUE"])
        image.rename(out)


def boot_archive(cache: Path, report: Report = lambda line: None) -> Path:
    """What the kernel unpacks into memory; the kernel lies beside it (.kernel). Raises BuildError."""
    cache.mkdir(parents=True, exist_ok=True)
    tree_tar = cache / f"rescue-tree-{hash_of([repr((SUITE, PACKAGES)).encode()])}.tar"
    ours = _ours()
    packed = cache / f"rescue-{hash_of([tree_tar.name.encode(), *_contents(ours)])}.initrd"
    if packed.exists() and packed.with_suffix(".kernel").exists():
        return packed
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as made:
        work = Path(made)
        if not tree_tar.exists():
            report("fetching Debian packages with mmdebstrap (about a minute)")
            _fetch(work / "tree.tar")
            replace(work / "tree.tar", tree_tar, "rescue-tree-*.tar")
        report("picking drivers, Python and the agent (about a minute)")
        tree = work / "tree"
        tree.mkdir()
        run(["tar", "--extract", "--no-same-owner", "--exclude=./dev/*", "--file", tree_tar, "--directory", tree])
        found = kernel(tree)
        version = found.name.removeprefix("vmlinuz-")
        entries = [
            *_own_files(),
            *programs(tree, ours, work),
            *modules(tree, version, work),
        ]
        plain = pack([*map(folder, _folders(entries)), *entries])
        (work / "kernel").write_bytes(found.read_bytes())
        (work / "initrd").write_bytes(zstandard.ZstdCompressor(COMPRESSION_LEVEL, threads=-1).compress(plain))
        replace(work / "kernel", packed.with_suffix(".kernel"), "rescue-*.kernel")
        replace(work / "initrd", packed, "rescue-*.initrd")
    return packed


def _fetch(out: Path) -> None:
    """Packages and all that they depend on, unpacked; nothing of them runs."""
    command = ["mmdebstrap", "--variant=extract", "--quiet", "--format=tar", f"--include={','.join(PACKAGES)}"]
    command += [f"--aptopt={line}" for line in host_apt_settings()]
    run([*command, SUITE, str(out), *mirrors()])


def _own_files() -> Iterator[Entry]:
    for path in files(HERE / "root"):
        yield entry(str(path.relative_to(HERE / "root")), path)


def _ours() -> dict[str, Path]:
    """The agent and what it needs, by their names in the image."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = python_packages([*project["dependencies"], *project["optional-dependencies"]["rescue"]])
    return found | {f"agent/{path.relative_to(REPOSITORY / 'agent')}": path for path in files(REPOSITORY / "agent")}


def _contents(ours: dict[str, Path]) -> Iterator[bytes]:
    for path in [*files(HERE), *ours.values()]:
        yield path.name.encode()
        yield path.read_bytes()


def _folders(entries: list[Entry]) -> list[str]:
    """All folders that the entries lie in, each before what lies in it."""
    found = {str(parent) for entry in entries for parent in Path(entry.name).parents}
    return sorted(found - {"."})
