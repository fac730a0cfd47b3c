"""What an instance was launched from is under a seal: a bit that flips there costs no point."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol.errors import Conflict, SiteError
from recovery.sites.contract import InstanceSpec, InstanceState
from recovery.sites.local import LocalSite
from recovery.sites.local.record import Record
from tests.recovery.sites.conftest import KEY, make_point
from tests.seeds import seeded


@pytest.fixture
def record(local_site: LocalSite, bootable: Callable[..., InstanceSpec], tmp_path: Path) -> Path:
    """Of a made instance of point `boot`, on which another stands."""
    local_site.make_instance(bootable(ports={22: 0}))
    make_point(local_site, KEY, "later", (4096, b"x" * 512))
    return tmp_path / "site" / "instances" / "i-1" / "spec.json"


def flipped(content: bytes, rng: random.Random, bits: int) -> bytes:
    damaged = bytearray(content)
    for bit in rng.sample(range(8 * len(content)), bits):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_no_point_is_removed_while_an_instances_record_is_damaged(local_site: LocalSite, record: Path) -> None:
    rng, sound = seeded(), record.read_bytes()
    said = Record.from_bytes(sound)
    for _ in range(200):
        record.write_bytes(flipped(sound, rng, 1))
        with pytest.raises(Conflict, match=r"in use|may run from it"):
            local_site.check_unused(KEY, "boot")
        try:
            assert local_site.watch("i-1").points == ["boot"]
            assert Record.from_bytes(record.read_bytes()) == said, "a bit that means nothing"
        except SiteError as error:
            assert "understudy end RUN" in error.hint
    record.unlink()
    with pytest.raises(Conflict, match="is gone"):
        local_site.delete_snapshot(KEY, "later")
    local_site.end("i-1")
    local_site.delete_snapshot(KEY, "boot")


def test_a_point_named_in_a_damaged_record_is_another_ones_too(local_site: LocalSite, record: Path) -> None:
    """The very bit that would have lifted the protection."""
    record.write_bytes(record.read_bytes().replace(b'"boot"', b'"bnot"'))
    with pytest.raises(Conflict, match=r"instance i-1 may run from it: .*spec.json is damaged"):
        local_site.delete_snapshot(KEY, "boot")


def test_an_instance_whose_record_is_damaged_is_listed_with_what_is_wrong(
    local_site: LocalSite, bootable: Callable[..., InstanceSpec], record: Path
) -> None:
    local_site.make_instance(bootable("i-2"))
    record.write_bytes(flipped(record.read_bytes(), random.Random(1), 40))
    damaged, sound = local_site.instances()
    assert (damaged.instance_id, damaged.state, sound.instance_id) == ("i-1", InstanceState.STOPPED, "i-2")
    assert "spec.json is damaged" in damaged.detail
    with pytest.raises(SiteError, match=r"spec.json is damaged"):
        local_site.watch("i-1")


def test_a_single_flipped_bit_is_turned_back_at_the_next_start(
    local_site: LocalSite, record: Path, tmp_path: Path
) -> None:
    sound = record.read_bytes()
    local_site.close()
    for damaged in (record.read_bytes().replace(b'"boot"', b'"cnot"'), flipped(sound, seeded(), 1)):
        record.write_bytes(damaged)
        site = LocalSite(tmp_path / "site", accel="tcg")
        with pytest.raises(Conflict, match=r"in use|may run from it"):
            site.check_unused(KEY, "boot")
        site.close()
    assert Record.from_bytes(record.read_bytes()) == Record.from_bytes(sound)
