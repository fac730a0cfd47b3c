"""Picks from an unpacked Debian tree what the rescue program needs: drivers of disks and networks, Python."""

from __future__ import annotations

import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from demo.building import BuildError, files, run
from recovery.repair.cpio import Entry

PYTHON = "python3.11"
DRIVERS = tuple(f"kernel/{place}" for place in Path(__file__).with_name("drivers.txt").read_text().split())
"""By where they lie; what they need comes with them. No wireless, no graphics, no file systems: none is mounted."""
_NOT_OF_PYTHON = {
    "curses",
    "dbm",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "sqlite3",
    "test",
    "tkinter",
    "turtledemo",
    "unittest",
    "venv",
    "wsgiref",
    "xmlrpc",
}
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def entry(name: str, path: Path) -> Entry:
    mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
    return Entry(name, stat.S_IFREG | mode, path.read_bytes())


def kernel(tree: Path) -> Path:
    """Raises BuildError."""
    found = sorted((tree / "boot").glob("vmlinuz-*"))
    if not found:
        raise BuildError("the Debian tree has no kernel")
    return found[-1]


def modules(tree: Path, version: str, work: Path) -> Iterator[Entry]:
    """The drivers, all that they need, and the tables by which they are found."""
    run(["depmod", "-b", tree, version])
    every, picked = (folder / "lib/modules" / version for folder in (tree, work / "modules"))
    needs = dict(line.split(":", 1) for line in (every / "modules.dep").read_text().splitlines())
    nowhere = [place for place in DRIVERS if not any(name.startswith(place) for name in needs)]
    if nowhere:
        raise BuildError(f"kernel {version} has no drivers in {', '.join(nowhere)}; look at rescue/drivers.txt")
    wanted = {"modules.order", "modules.builtin", "modules.builtin.modinfo"}
    for name, others in needs.items():
        if name.startswith(DRIVERS):
            wanted |= {name, *others.split()}
    for name in wanted:
        (picked / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(every / name, picked / name)
    run(["depmod", "-b", work / "modules", version])
    for path in files(picked):
        yield entry(f"lib/modules/{version}/{path.relative_to(picked)}", path)


def programs(tree: Path, ours: dict[str, Path], work: Path) -> Iterator[Entry]:
    """busybox, kmod, Python with its library and with `ours` (by their names in /opt/understudy), compiled, and the
    shared libraries that all these need."""
    yield entry("bin/busybox", tree / "bin/busybox")
    yield link("bin/sh", "busybox")
    yield entry("bin/kmod", tree / "bin/kmod")
    yield link("sbin/modprobe", "/bin/kmod")
    yield entry(f"usr/bin/{PYTHON}", tree / "usr/bin" / PYTHON)
    yield link("usr/bin/python3", PYTHON)
    staged, library = work / "python", tree / "usr/lib" / PYTHON
    found = {f"usr/lib/{PYTHON}/{name}": path for name, path in _library_files(library)}
    found |= {f"opt/understudy/{name}": path for name, path in ours.items()}
    for name, path in found.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, staged / name)
    # starting is slow enough: nothing is compiled there, and without sources it is half as large
    run([sys.executable, "-m", "compileall", "-q", "-b", "-s", staged, "-p", "/", staged])
    binaries = [tree / "bin/kmod", tree / "usr/bin" / PYTHON]
    for path in files(staged):
        if path.suffix != ".py":
            yield entry(str(path.relative_to(staged)), path)
        if ".so" in path.suffixes:
            binaries.append(path)
    yield from _shared_libraries(tree, binaries)


def _library_files(library: Path) -> Iterator[tuple[str, Path]]:
    for path in files(library):
        name = path.relative_to(library)
        if name.parts[0] not in _NOT_OF_PYTHON and not name.parts[0].startswith("config-"):
            yield str(name), path


def _shared_libraries(tree: Path, binaries: Iterable[Path]) -> Iterator[Entry]:
    """What the tree's own loader finds for them, in the tree."""
    places = [tree / folder for folder in _LIBRARIES]
    loader = places[0] / "ld-linux-x86-64.so.2"
    needed = {places[0] / "libnss_dns.so.2", places[0] / "libnss_files.so.2", places[0] / "libresolv.so.2"}
    for binary in binaries:
        path = ":".join(map(str, places))
        listed = run([loader, "--inhibit-cache", "--library-path", path, "--list", binary])
        if "not found" in listed:
            raise BuildError(f"{binary.name} needs a library that the Debian tree does not have:\n{listed}")
        needed |= {Path(found) for found in re.findall(r"=> (/\S+) \(0x", listed)}
    for path in sorted(needed):
        yield entry(f"lib/x86_64-linux-gnu/{path.name}", path)
    yield entry("lib64/ld-linux-x86-64.so.2", loader)


def python_packages(requirements: Iterable[str]) -> dict[str, Path]:
    """Installed packages and what they need, as they lie in this environment: no other copy has to be fetched.

    Raises BuildError where this environment's Python is another than the image's."""
    if f"python{sys.version_info.major}.{sys.version_info.minor}" != PYTHON:
        raise BuildError(f"the rescue image has {PYTHON}, and .venv another; make it anew with {PYTHON}: make setup")
    waiting, seen = [_name(text) for text in requirements], set[str]()
    picked: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # what only another Python or system needs
        waiting += [_name(text) for text in found.requires or [] if "extra ==" not in text]
        for file in found.files or []:
            # zstandard comes twice, and the library takes the other
            if ".." not in file.parts and "__pycache__" not in file.parts and "_cffi.cpython" not in file.name:
                picked[str(file)] = Path(str(found.locate_file(file)))
    return picked


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
