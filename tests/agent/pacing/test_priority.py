"""In processes of their own: a priority is the whole process's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
import ctypes, os, sys, threading, platform
from agent.pacing import priority
number = {"x86_64": 252, "aarch64": 31}[platform.machine()]  # ioprio_get
def show():
    value = ctypes.CDLL(None).syscall(number, 1, 0)
    print(os.getpriority(os.PRIO_PROCESS, 0), value >> 13, value & 7, flush=True)
go = threading.Event()
early = threading.Thread(target=lambda: (go.wait(), show()))
early.start()
"""
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"), reason="reads Linux's priorities"
)


def shown(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SHOW + code], capture_output=True, text=True, check=True, cwd=".")
    return done.stdout.split("\n")[:-1]


def test_low_holds_for_threads_that_there_are_threads_to_come_and_children() -> None:
    code = """
print(priority.apply(priority.Priority.LOW) or "done", flush=True)
go.set(); early.join()
late = threading.Thread(target=show); late.start(); late.join()
os.spawnlp(os.P_WAIT, "sh", "sh", "-c", "cut -d' ' -f19 /proc/self/stat")
"""
    assert shown(code) == ["done", "10 2 7", "10 2 7", "10"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_while_the_server_waits_for_us_the_priority_is_normal() -> None:
    code = """
priority.apply(priority.Priority.LOW)
with priority.raised(): show()
show()
go.set(); early.join()
"""
    assert shown(code) == ["0 2 4", "10 2 7", "10 2 7"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to stop being root")
def test_what_may_not_be_done_is_said_and_does_no_harm() -> None:
    code = """
priority.apply(priority.Priority.LOW)
os.setuid(65534)
print(priority.apply(priority.Priority.NORMAL))
go.set(); early.join()
"""
    said, low = shown(code)
    assert "stays as it is" in said
    assert low.startswith("10 ")
