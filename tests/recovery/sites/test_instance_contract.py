"""What recovery/sites/contract.py says of instances, as tests that every site passes."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable

import pytest

from agent.protocol.errors import Conflict, NotFound
from recovery.sites.contract import InstanceSpec, InstanceState, NetworkMode, Site
from tests.patience import PATIENCE_SECONDS, eventually
from tests.recovery.sites.conftest import KEY, content, covers, make_point
from tests.recovery.sites.guest import WRITES_AT

Specs = Callable[..., InstanceSpec]
MIB = 1 << 20


@pytest.mark.qemu
def test_an_instance_boots_writes_to_its_own_volume_stops_starts_and_ends(site: Site, bootable: Specs) -> None:
    before = content(site, KEY, "boot")
    spec = bootable()
    launched = site.launch(spec)
    assert (launched.state, launched.run_id, launched.server_id) == (InstanceState.RUNNING, "run-1", "web01")
    assert (launched.machine_id, launched.network) == (spec.machine_id, NetworkMode.ISOLATED)
    assert list(launched.points) == [point_id for _, point_id in spec.points]
    assert site.launch(spec) == launched
    assert site.instances() == [launched]
    eventually(lambda: "written" in site.console("i-1"))
    assert "login:\nwritten\n" in site.console("i-1")
    assert site.console("i-1", last_bytes=4) == "en\n"
    assert site.screenshot("i-1").startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8"))
    assert covers(site.instance_changes("i-1", 0), WRITES_AT)
    with pytest.raises(Conflict):
        site.open_instance_volume("i-1", 0)

    site.stop("i-1")
    eventually(lambda: site.watch("i-1").state is InstanceState.STOPPED)
    site.stop("i-1")
    with pytest.raises(Conflict, match="does not run"):
        site.screenshot("i-1")
    with pytest.raises(Conflict, match="does not run"):
        site.holds_connection("i-1", 80)
    for ask in (site.screenshot, lambda instance_id: site.holds_connection(instance_id, 80)):
        with pytest.raises(NotFound):
            ask("i-9")
    assert covers(site.instance_changes("i-1", 0), WRITES_AT)
    volume = site.open_instance_volume("i-1", 0)
    assert volume.read(WRITES_AT, 64) == before[:64]
    with pytest.raises(Conflict):
        volume.write(0, b"x")
    volume.close()

    assert site.launch(spec).state is InstanceState.RUNNING
    eventually(lambda: site.console("i-1").count("written") == 2)
    site.end("i-1")
    site.end("i-1")
    assert site.watch("i-1").state is InstanceState.GONE
    assert site.instances() == []
    assert site.console("i-1") == ""
    assert content(site, KEY, "boot") == before


@pytest.mark.qemu
@pytest.mark.parametrize("network", list(NetworkMode))
def test_the_ports_asked_for_are_reached_where_the_instance_says(
    site: Site, bootable: Specs, network: NetworkMode
) -> None:
    instance = site.launch(bootable(ports={80: 0, 22: 0}, network=network))
    assert set(instance.addresses) == {22, 80}
    for port, address in instance.addresses.items():
        with socket.create_connection(address, timeout=PATIENCE_SECONDS):
            assert not site.holds_connection("i-1", port), "this guest has no network: somebody took it in its place"
    assert site.watch("i-1").addresses == instance.addresses
    assert instance.network is network


@pytest.mark.qemu
def test_snapshots_that_an_instance_runs_from_cannot_be_deleted(site: Site, bootable: Specs) -> None:
    make_point(site, KEY, "later", (65_536, b"x"))
    site.launch(bootable())
    site.check_unused(KEY, "later")
    for refused in (
        lambda: site.check_unused(KEY, "boot"),
        lambda: site.delete_snapshot(KEY, "boot"),
        lambda: site.delete_volume(KEY),
    ):
        with pytest.raises(Conflict):
            refused()
    site.end("i-1")
    site.delete_snapshot(KEY, "boot")
    assert site.snapshots(KEY) == ["later"]


@pytest.mark.qemu
def test_a_server_is_pushed_to_while_an_instance_of_it_runs(site: Site, bootable: Specs) -> None:
    site.launch(bootable())
    make_point(site, KEY, "p2", (131_072, b"x"))
    assert site.snapshots(KEY) == ["boot", "p2"]


def test_an_instance_of_a_missing_snapshot_is_not_launched(site: Site, bootable: Specs) -> None:
    site.delete_snapshot(KEY, "boot")
    with pytest.raises(NotFound):
        site.launch(bootable())
    assert site.instances() == []


def test_an_instance_that_never_was_is_gone(site: Site) -> None:
    assert site.watch("i-9").state is InstanceState.GONE
    assert site.console("i-9") == ""
    site.end("i-9")
    for missing in (
        lambda: site.stop("i-9"),
        lambda: site.instance_changes("i-9", 0),
        lambda: site.open_instance_volume("i-9", 0),
    ):
        with pytest.raises(NotFound):
            missing()


def test_a_price_says_what_an_instance_uses(site: Site, bootable: Specs) -> None:
    price = site.price(bootable())
    assert (price.memory_mib, price.cpus) == (64, 1)


def test_an_instance_is_made_and_changed_before_it_is_started(site: Site, bootable: Specs) -> None:
    """As boot repair does: the point stays as it is."""
    spec = bootable()
    before = content(site, KEY, "boot")
    made = site.make_instance(spec)
    assert made.state is InstanceState.PENDING
    assert site.make_instance(spec).state is InstanceState.PENDING
    assert site.instance_volume_location("i-1", 0)
    with pytest.raises(NotFound):
        site.instance_volume_location("i-1", 1)
    assert site.instance_changes("i-1", 0) == []
    site.end("i-1")
    assert site.watch("i-1").state is InstanceState.GONE
    assert content(site, KEY, "boot") == before


def test_what_speaks_against_a_launch_is_found_without_launching(site: Site, bootable: Specs) -> None:
    assert site.objections(bootable()) == []
    assert site.objections(bootable(network_name="no-such-net"))
    assert site.objections(dataclasses.replace(bootable(), memory_mib=1 << 30))
    assert site.objections(dataclasses.replace(bootable(), points=[(KEY, "absent")]))
    assert site.instances() == []


def test_the_site_says_what_it_has_to_give(site: Site) -> None:
    capacity = site.capacity()
    assert capacity.free_bytes > 0
    assert all(size.cpus > 0 and size.memory_mib > 0 for size in capacity.sizes.values())
