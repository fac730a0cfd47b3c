"""Gates over a network look at the guest, not at whoever forwards to it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import guest
from recovery.gates import Gate, HttpGate, TcpGate, check_gate
from recovery.sites.contract import InstanceSpec
from recovery.sites.local import LocalSite
from tests.patience import eventually
from tests.recovery.repair.conftest import worker_parts
from tests.recovery.repair.images import CACHE
from tests.recovery.sites.conftest import KEY, local_site, make_point
from tests.recovery.test_gates import AGENT

__all__ = ["local_site", "worker_parts"]

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
    pytest.mark.skipif(not guest.GRUB.exists(), reason="needs GRUB's BIOS modules (grub-pc-bin)"),
]
DISK_BYTES = guest.SYSTEM_BYTES


@pytest.fixture
def bootable_site(worker_parts: None, local_site: LocalSite, tmp_path: Path) -> Iterator[LocalSite]:
    image = tmp_path / "guest.img"
    guest.build(image, DISK_BYTES, CACHE)
    make_point(local_site, KEY, "boot", (0, image.read_bytes()), size=DISK_BYTES)
    return local_site


def test_gates_hold_when_the_guest_answers(bootable_site: LocalSite) -> None:
    site = bootable_site
    closed = 81
    spec = InstanceSpec(
        instance_id="i-1",
        run_id="run-1",
        server_id=KEY.server_id,
        server_name="web01",
        points=[(KEY, "boot")],
        machine_id="00000000-0000-4000-8000-000000000007",
        memory_mib=guest.MEMORY_MIB,
        cpus=1,
        ports={guest.PORT: 0, closed: 0},
    )
    instance = site.launch(spec)
    gates: list[Gate] = [TcpGate(port=guest.PORT), HttpGate(port=guest.PORT, path="/health")]
    for gate in gates:
        eventually(lambda gate=gate: check_gate(gate, site, "i-1", AGENT).held)  # type: ignore[misc]
    assert "login:" in site.console("i-1"), "the guest was up when the gates held"
    assert not check_gate(TcpGate(port=closed), site, "i-1", AGENT).held
    assert not site.holds_connection("i-1", guest.PORT)
    with socket.create_connection(instance.addresses[guest.PORT]):
        eventually(lambda: site.holds_connection("i-1", guest.PORT))
