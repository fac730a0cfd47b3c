"""Two real SYSTEM hives, unpacked once. Nobody changes a Hive: a change makes another."""

from __future__ import annotations

import subprocess

import pytest

from recovery.repair.windows.hive import Hive
from tests.recovery.repair.windows.making import real_hive


@pytest.fixture(scope="session")
def windows_7() -> Hive:
    return Hive("SYSTEM", real_hive("SYSTEM_WIN7"))


@pytest.fixture(scope="session")
def windows_10() -> Hive:
    return Hive("SYSTEM", real_hive("SYSTEM_WIN_10_1709"))


@pytest.fixture(scope="session")
def hivex() -> None:
    done = subprocess.run(["/usr/bin/python3", "-I", "-c", "import hivex"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("hivex is not installed: apt-get install python3-hivex")
