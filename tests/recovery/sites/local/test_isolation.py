"""A drill's guest reaches nothing, and a failover's does: tried from inside of the guest."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from recovery.sites.contract import InstanceSpec, InstanceState, NetworkMode
from recovery.sites.local import LocalSite
from tests.patience import PATIENCE_SECONDS
from tests.recovery.sites.conftest import KEY, make_point

HERE = Path(__file__).parent
MARK = b"TARGETS:"

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(any(shutil.which(tool) is None for tool in ("gcc", "as", "ld")), reason="needs gcc, binutils"),
]


class Listener:
    """Hears TCP and UDP on one port of an address, and keeps what came."""

    def __init__(self, address: str) -> None:
        self.heard: list[str] = []
        self._tcp, self._udp = self._on_one_port(address)
        self.address, self.port = self._tcp.getsockname()
        self._threads = [threading.Thread(target=hear) for hear in (self._hear_tcp, self._hear_udp)]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _on_one_port(address: str) -> tuple[socket.socket, socket.socket]:
        while True:
            tcp, udp = socket.create_server((address, 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                udp.bind(tcp.getsockname())
                return tcp, udp
            except OSError:  # free for the one, and taken for the other
                tcp.close()
                udp.close()

    def close(self) -> None:
        self._tcp.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self.address, self.port))
        for thread in self._threads:
            thread.join()
        self._tcp.close()
        self._udp.close()

    def _hear_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            self.heard.append("tcp")
            connection.close()

    def _hear_udp(self) -> None:
        while True:
            data, sender = self._udp.recvfrom(100)
            if not data:
                return
            self.heard.append("udp")
            self._udp.sendto(data, sender)


def address_beyond_loopback() -> str:
    """One of this machine's own that QEMU's user network does not take for its own: `outside` without an internet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address: str = probe.getsockname()[0]
    if address.startswith(("127.", "10.0.2.")):
        pytest.skip(f"{address} is no address beyond the guest's own network")
    return address


@pytest.fixture
def listeners() -> Iterator[tuple[Listener, Listener]]:
    """On this machine's loopback, where the service is, which the guest's gateway stands for; and beyond."""
    outside = address_beyond_loopback()
    pair = Listener("127.0.0.1"), Listener(outside)
    yield pair
    for listener in pair:
        listener.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("escape")
    bare = ["-m32", "-Os", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"]
    for command in (
        ["gcc", *bare, "-Wno-array-bounds", "-c", HERE / "escape.c", "-o", "escape.o"],
        ["as", "--32", "-o", "boot.o", HERE / "escape_boot.S"],
        ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", "escape.img", "boot.o", "escape.o"],
    ):
        subprocess.run(command, cwd=folder, check=True)
    return (folder / "escape.img").read_bytes()


def tried_from_inside(
    site: LocalSite, image: bytes, network: NetworkMode, pair: tuple[Listener, Listener], tries: int
) -> str:
    """What the guest says on its console. It waits about a second for the answer to each of its tries."""
    inside, outside = pair
    targets = MARK + socket.inet_aton(outside.address) + struct.pack(">HHB", inside.port, outside.port, tries)
    assert image.count(MARK) == 1
    make_point(site, KEY, "escape", (0, image.replace(MARK + bytes(9), targets)))
    spec = InstanceSpec(
        instance_id="i-1",
        run_id="run-1",
        server_id=KEY.server_id,
        server_name="web01",
        points=[(KEY, "escape")],
        machine_id=str(uuid.UUID(int=7)),
        memory_mib=64,
        cpus=1,
        network=network,
        ports={80: 0},
    )
    site.launch(spec)
    deadline = time.monotonic() + 2 * PATIENCE_SECONDS
    while "done" not in site.console("i-1"):
        assert site.watch("i-1").state is InstanceState.RUNNING
        assert time.monotonic() < deadline, site.console("i-1")
        time.sleep(0.1)
    return site.console("i-1")


def test_a_drills_guest_reaches_neither_the_service_nor_anything_beyond(
    local_site: LocalSite, image: bytes, listeners: tuple[Listener, Listener]
) -> None:
    said = tried_from_inside(local_site, image, NetworkMode.ISOLATED, listeners, tries=3)
    assert "card: works" in said, "it could have got out"
    for attempt in ("gateway tcp", "gateway udp", "outside tcp", "outside udp"):
        assert f"{attempt}: " in said
        assert f"{attempt}: reached" not in said
    assert [listener.heard for listener in listeners] == [[], []]


def test_a_failovers_guest_reaches_both(
    local_site: LocalSite, image: bytes, listeners: tuple[Listener, Listener]
) -> None:
    said = tried_from_inside(local_site, image, NetworkMode.REAL, listeners, tries=255)
    for attempt in ("gateway tcp", "gateway udp", "outside tcp", "outside udp"):
        assert f"{attempt}: reached" in said
    assert [set(listener.heard) for listener in listeners] == [{"tcp", "udp"}, {"tcp", "udp"}]
