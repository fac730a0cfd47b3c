"""What `make` needs is named in words that can be acted on, with or without root and apt."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BASICS = "bash cat dirname id mktemp rm sed sha256sum tail true"
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


class Machine:
    """A copy of the repository's set-up, on a machine that has only the commands in `bin`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "scripts").mkdir()
        shutil.copy(REPOSITORY / "scripts" / "setup", folder / "scripts" / "setup")
        shutil.copy(REPOSITORY / "pyproject.toml", folder / "pyproject.toml")
        for name in BASICS.split():
            self.has(name)
        (self.bin / "python3").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
        environment = folder / ".venv"  # as if the Python packages had been installed
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "python").symlink_to(sys.executable)
        stamp = hashlib.sha256((folder / "pyproject.toml").read_bytes()).hexdigest()
        self.worker = folder / ".cache" / "worker"  # as if it had been downloaded
        self.worker.mkdir(parents=True)
        (environment / "installed-for").write_text(f"{stamp}  pyproject.toml\n")
        self.fuzzer_tried = environment / "fuzzer-tried"
        self.fuzzer_tried.touch()

    def has(self, name: str, script: str | None = None) -> None:
        if script is None:
            found = shutil.which(name)
            assert found, name
            (self.bin / name).symlink_to(found)
        else:
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)

    def setup(self, target: str, user: int | None = None) -> tuple[int, str]:
        """Exit code, and what was said."""
        done = subprocess.run(
            [self.bin / "bash", self.folder / "scripts" / "setup", target],
            env={"PATH": str(self.bin)},
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            capture_output=True,
            text=True,
        )
        assert done.stdout == ""
        assert all(line.startswith("setup: ") for line in done.stderr.splitlines()), done.stderr
        return done.returncode, done.stderr


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own can be read by nobody else
        Path(folder).chmod(0o755)
        yield Machine(Path(folder))


def test_without_apt_the_packages_are_named_and_the_demonstration_ends(machine: Machine) -> None:
    code, words = machine.setup("demo")
    assert code == 1
    assert "these packages are missing:" in words
    assert "qemu-utils" in words
    assert "qemu-system-x86" in words
    assert "this machine has no apt: install what provides them (the names are Debian's)" in words
    assert "the demonstration needs them" in words


def test_the_rescue_image_names_what_it_needs_and_ends(machine: Machine) -> None:
    code, words = machine.setup("rescue")
    assert code == 1
    assert {"xorriso", "mmdebstrap", "mtools"} <= set(words.split())
    assert "the rescue image needs them" in words


def test_without_apt_tests_go_on_and_say_what_becomes_of_those_that_need_more(machine: Machine) -> None:
    code, words = machine.setup("test")
    assert code == 0
    assert "qemu-utils" in words
    assert "tests that need them are skipped or fail" in words


@needs_root
def test_without_root_the_line_to_run_as_root_is_given(machine: Machine) -> None:
    machine.has("apt-get", "#!/bin/bash\necho it was run >&2\nexit 99\n")
    code, words = machine.setup("demo", NOBODY)
    assert code == 1
    assert "it was run" not in words
    (line,) = [line for line in words.splitlines() if "install them as root:" in line]
    packages = line.partition("install --no-install-recommends ")[2].split()
    missing = words.splitlines()[0].partition("missing: ")[2].split()
    assert packages == missing
    assert {"qemu-utils", "qemu-system-x86", "mmdebstrap"} <= set(packages)


@needs_root
def test_without_root_and_apt_both_are_said(machine: Machine) -> None:
    code, words = machine.setup("demo", NOBODY)
    assert code == 1
    assert "this machine has no apt" in words
    assert "as root" not in words


@needs_root
def test_with_root_what_is_missing_and_only_that_is_installed(machine: Machine) -> None:
    machine.has("apt-get", '#!/bin/bash\necho "$@" >>"$(dirname "$0")/asked"\n')
    machine.has("qemu-img", "#!/bin/bash\n")
    code, words = machine.setup("test")
    assert code == 0
    asked = (machine.bin / "asked").read_text()
    assert "install -y --no-install-recommends" in asked
    assert "qemu-system-x86" in asked.split()
    assert "qemu-utils" not in asked.split()
    assert "installing" in words


@needs_root
def test_an_apt_that_fails_is_quoted(machine: Machine) -> None:
    machine.has("apt-get", "#!/bin/bash\necho 'setup: E: no network' \nexit 100\n")
    code, words = machine.setup("test")
    assert code == 1
    assert "E: no network" in words
    assert "apt-get failed; its last lines are above" in words


def test_the_checks_need_nothing_but_python_and_say_nothing(machine: Machine) -> None:
    assert machine.setup("check") == (0, "")


def test_without_a_worker_for_boot_repair_tests_go_on_and_say_so(machine: Machine) -> None:
    machine.worker.rmdir()
    (machine.folder / "recovery").mkdir()  # there is nothing in it that could download
    code, words = machine.setup("test")
    assert code == 0
    if not list(Path("/boot").glob("vmlinuz-*")):
        assert "tests that need it are skipped" in words


def test_without_a_fuzzer_tests_go_on_and_it_is_said_once(machine: Machine) -> None:
    machine.fuzzer_tried.unlink()
    python = machine.folder / ".venv/bin/python"
    python.unlink()
    python.write_text("#!/bin/bash\nexit 1\n")
    python.chmod(0o755)
    code, words = machine.setup("test")
    assert code == 0
    assert "atheris cannot be installed here" in words
    assert "atheris" not in machine.setup("test")[1]


def test_without_a_python_that_will_do_its_package_is_named(machine: Machine) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        (machine.bin / name).unlink(missing_ok=True)
    script = machine.folder / "scripts" / "setup"
    # the only one that is asked for by its place
    script.write_text(script.read_text().replace(" /usr/bin/python3;", ";"))
    code, words = machine.setup("check")
    assert code == 1
    assert "python3-venv" in words
