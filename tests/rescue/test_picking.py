"""What goes onto the rescue medium."""

import pytest

from demo.building import BuildError
from recovery.repair.cpio import Entry
from rescue import picking
from rescue.image import _folders
from rescue.picking import python_packages


def test_a_python_package_comes_with_all_that_it_needs() -> None:
    picked = python_packages(["spake2>=0.9,<1", "zstandard"])
    assert {"spake2/__init__.py", "cryptography/__init__.py", "cffi/__init__.py"} <= picked.keys()
    assert any(name.startswith("_cffi_backend") for name in picked)
    assert any(name.startswith("zstandard/backend_c.") for name in picked)
    assert all(path.is_file() for path in picked.values())
    assert not any("pytest" in name or name.endswith(".pyc") for name in picked)


def test_another_python_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picking, "PYTHON", "python3.2")
    with pytest.raises(BuildError, match=r"has python3\.2, and \.venv another"):
        python_packages(["spake2"])


def test_folders_come_before_what_lies_in_them() -> None:
    entries = [Entry("usr/lib/python3.11/ssl.pyc", 0), Entry("init", 0), Entry("usr/bin/x", 0)]
    found = _folders(entries)
    assert found == ["usr", "usr/bin", "usr/lib", "usr/lib/python3.11"]
