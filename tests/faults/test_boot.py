"""A point that does not boot: the gate fails with what the console said last, and nothing is left running."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.harness import Agent, Ledger, Service
from tests.faults.machine import path_without

PLAN = """
plan: garbage
groups:
  - servers:
      - name: web01
        memory_mib: 128
        cpus: 1
        gates:
          - console: {text: "login:", timeout_seconds: 25}
"""


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
def test_a_drill_of_what_cannot_boot_fails_at_its_gate_with_the_consoles_last_lines(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    with open(image, "r+b") as disk:
        disk.write(boot_sector("nothing to boot here"))
    ledger.reported(protected.push(), image)
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    assert service.ask("plan", "apply", plan).code == 0
    failed = service.ask("panic", "garbage", "--drill", "--yes")
    assert failed.code == 1, failed
    assert "Traceback" not in failed.err
    assert "nothing to boot here" in failed.out + failed.err, failed
    (run,) = service.ask("runs", "--json").document
    assert run["state"] == "failed"
    assert service.ask("end", run["id"]).code == 0
    assert not list((service.data / "site" / "instances").glob("*/pid"))
    ledger.reported(protected.push(), image)
    ledger.check(service)


def test_without_qemu_pushes_go_on_and_the_button_names_the_package(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    service.stop()
    without = Service(service.folder, port=service.port, env={"PATH": path_without(tmp_path, "qemu-system")})
    without.start()
    try:
        ledger.reported(protected.push(), image)
        assert "qemu-system-x86" in without.ask("plan", "check", "web01").complaint
        failed = without.ask("panic", "web01", "--drill", "--yes")
        assert "apt-get install qemu-system-x86" in failed.complaint
        (run,) = without.ask("runs", "--json").document
        assert without.ask("end", run["id"]).code == 0
    finally:
        without.stop()
    service.start()
    ledger.reported(protected.push(), image)
    ledger.check(service)


def boot_sector(text: str) -> bytes:
    """A disk's first sector that writes `text` to the first serial port, and halts."""
    # mov dx, 3F8h; mov si, text; cld; next: lodsb; test al, al; jz stop; out dx, al; jmp next; stop: cli; hlt; jmp stop
    code = bytes.fromhex("BAF803 BE157C FC AC 84C0 7403 EE EBF8 FA F4 EBFC".replace(" ", ""))
    message = (text + "\r\n").encode() + b"\0"
    code = code.replace(b"\xbe\x15\x7c", b"\xbe" + (0x7C00 + len(code)).to_bytes(2, "little"))
    return (code + message).ljust(510, b"\0") + b"\x55\xaa"
