"""Sites to run the contract suite against: each is a function (folder) -> site that is closed afterwards."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recovery.sites.contract import Extent, InstanceSpec, Site, VolumeKey
from recovery.sites.local import LocalSite
from tests.recovery.sites.guest import BOOT_SECTOR

SIZE = 1 << 20
KEY = VolumeKey("web01", 0)


@pytest.fixture
def local_site(tmp_path: Path) -> Iterator[LocalSite]:
    site = LocalSite(tmp_path / "site", accel="tcg")
    yield site
    for instance in site.instances():
        site.end(instance.instance_id)
    site.close()


@pytest.fixture(params=["local"])
def site(request: pytest.FixtureRequest) -> Site:
    made: Site = request.getfixturevalue(f"{request.param}_site")
    return made


def covers(extents: list[Extent], offset: int) -> bool:
    return any(extent.offset <= offset < extent.offset + extent.length for extent in extents)


def write(site: Site, key: VolumeKey, *parts: tuple[int, bytes]) -> None:
    """Write into the working state: open, write, flush, close."""
    io = site.open_volume(key)
    try:
        for offset, data in parts:
            io.write(offset, data)
        io.flush()
    finally:
        io.close()


def content(site: Site, key: VolumeKey, point_id: str | None = None) -> bytes:
    """All bytes of a snapshot, or of the working state."""
    io = site.open_volume(key) if point_id is None else site.open_snapshot(key, point_id)
    try:
        return bytes(io.read(0, io.size_bytes))
    finally:
        io.close()


def make_point(site: Site, key: VolumeKey, point_id: str, *parts: tuple[int, bytes], size: int = SIZE) -> None:
    site.make_volume(key, size)
    write(site, key, *parts)
    site.snapshot(key, point_id)


@pytest.fixture
def bootable(site: Site) -> Callable[..., InstanceSpec]:
    """Makes point `boot` with a guest on it; returns a function that makes specs to launch it with."""
    make_point(site, KEY, "boot", (0, BOOT_SECTOR))

    def spec(instance_id: str = "i-1", **more: object) -> InstanceSpec:
        return InstanceSpec(
            instance_id=instance_id,
            run_id="run-1",
            server_id=KEY.server_id,
            server_name="web 01, the first",
            points=[(KEY, "boot")],
            machine_id=str(uuid.UUID(int=7)),
            memory_mib=64,
            cpus=1,
            **more,  # type: ignore[arg-type]
        )

    return spec
