"""docs/protocol.md is enough to write another agent from: one that was talks to the real service, beside ours."""

from __future__ import annotations

import ast
import base64
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.faults.harness import Agent, Service
from tests.protocol.second_agent import BLOCK, Refused, SecondAgent

SOURCE = Path(__file__).with_name("second_agent.py")
MACHINE = "00000000-0000-4000-8000-000000000002"
BLOCKS_IN_ALL = 1500


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "service")
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture
def second(service: Service, tmp_path: Path) -> SecondAgent:
    made = SecondAgent("127.0.0.1", service.port, tmp_path / "second", MACHINE)
    assert made.enrol(service.token("--name", "db01"))["server_name"] == "db01"
    return made


@pytest.fixture
def volume() -> bytearray:
    """Text and noise, with holes, and a last block that is short."""
    rng = random.Random(1)
    made = bytearray(BLOCKS_IN_ALL * BLOCK + 5 * 512)
    for block in range(0, BLOCKS_IN_ALL + 1, 3):
        content = rng.randbytes(BLOCK) if block % 2 else b"all work and no play " * 1000
        made[block * BLOCK : (block + 1) * BLOCK] = content[:BLOCK]
    del made[BLOCKS_IN_ALL * BLOCK + 5 * 512 :]
    return made


def change(volume: bytearray) -> None:
    """A page here and there, two blocks that become zero, two that stop being zero."""
    for block in (0, 3, 303, BLOCKS_IN_ALL):
        volume[block * BLOCK + 100] ^= 255
    for block in (600, 603):
        volume[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
    for block in (1, 700):
        volume[block * BLOCK] = 1


def test_it_knows_nothing_but_the_page() -> None:
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert names - sys.stdlib_module_names == {"blake3", "cryptography", "zstandard"}


def test_it_pushes_sends_what_changed_and_pulls_what_differs(
    second: SecondAgent, service: Service, volume: bytearray, tmp_path: Path
) -> None:
    assert second.hello()["server_name"] == "db01"
    first = second.push("/dev/vda", bytes(volume))
    old = bytes(volume)
    change(volume)
    newest = second.push("/dev/vda", bytes(volume))
    assert second.patched_blocks == 4
    assert second.sent_blocks == 2

    assert [point["id"] for point in service.points("db01")] == [newest["id"], first["id"]]
    assert service.ask("verify", "--all").code == 0
    out = tmp_path / "out.raw"
    assert service.ask("export", first["id"], "--format", "raw", out).code == 0
    assert out.read_bytes() == old
    for held in (b"", old, bytes(volume), random.Random(2).randbytes(len(volume))):
        for pages in (True, False):
            assert second.pull("latest", held, pages=pages) == volume
    second.pulled_patches = 0
    assert second.pull(first["id"], bytes(volume)) == old
    assert second.pulled_patches == 3, "of the four blocks that changed a little the last has but one page"


def test_without_its_memory_it_offers_nothing_of_what_is_the_same(second: SecondAgent, volume: bytearray) -> None:
    large = bytes(volume).ljust((2048 + 9) * 16384, b"\0")
    second.push("/dev/vda", large)
    assert second.offered_unknowing == 2048, "the short segment behind is zeros, as all of a new replica is"
    second._known.clear()
    second.push("/dev/vda", large)
    assert second.offered_unknowing == 0
    second._known.clear()
    second.push("/dev/vda", large[:-1] + b"x")
    assert (second.offered_unknowing, second.sent_blocks) == (9, 1)


def test_what_it_pushed_ours_pulls_and_the_other_way_round(
    second: SecondAgent, service: Service, volume: bytearray, tmp_path: Path
) -> None:
    second.push("/dev/vda", bytes(volume))
    ours = Agent(tmp_path / "ours", service)
    ours.enroll("db01")
    onto, disk = tmp_path / "onto.raw", tmp_path / "disk.raw"
    assert ours.pull(onto).code == 0
    assert onto.read_bytes() == volume

    ours = Agent(tmp_path / "other", service)
    ours.enroll("web01")
    disk.write_bytes(volume)
    ours.protect(disk)
    ours.push().document  # noqa: B018  # asserts
    reader = SecondAgent("127.0.0.1", service.port, tmp_path / "reader", MACHINE)
    reader.enrol(service.token("--name", "web01"))
    assert reader.pull("latest", b"") == volume


def test_its_token_is_good_once_and_its_lost_session_is_told(second: SecondAgent, service: Service) -> None:
    token = service.token("--name", "db02")
    again = SecondAgent(*second._where, second._state.with_name("third"), MACHINE)
    again.enrol(token)
    with pytest.raises(Refused, match="token"):
        SecondAgent(*second._where, second._state.with_name("fourth"), MACHINE).enrol(token)
    with pytest.raises(Refused, match="session_unknown"):
        second.post("/agent/v1/sessions/pt-2222222222/abandon")


def test_a_points_manifest_is_checked_as_the_page_says(
    second: SecondAgent, service: Service, volume: bytearray
) -> None:
    point = second.push("/dev/vda", bytes(volume))
    (found,) = service.data.rglob(f"documents/{point['id']}.json")
    signed = json.loads(found.read_text())
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signed["public_key"]))
    key.verify(base64.b64decode(signed["signature"]), signed["manifest"].encode())
    manifest = json.loads(signed["manifest"])
    assert manifest["format"] == "understudy-point-1"
    assert manifest["point"] == json.loads(second.ask("GET", f"/agent/v1/points/{point['id']}"))
