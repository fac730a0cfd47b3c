"""A capture takes what a stopped instance holds, and reads no more of it than may differ."""

import contextlib
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.digests import DIGEST_BYTES, DigestMap
from agent.protocol.grid import BlockGrid
from recovery.sites.contract import InstanceSpec, InstanceState, VolumeKey
from recovery.sites.local import accel
from service.receiver.capture import _SCAN_BLOCKS, _suspects, capture
from tests.patience import eventually
from tests.recovery.sites.guest import BOOT_SECTOR, WRITES_AT
from tests.service.receiver.pushing import BLOCK, SERVER, Bench, Pusher, make_image

COUNT = 3 * _SCAN_BLOCKS + 7
indices = st.integers(0, COUNT - 1)


@given(
    extents=st.lists(st.tuples(indices, st.integers(1, 2 * _SCAN_BLOCKS)), max_size=5),
    otherwise=st.sets(indices, max_size=20),
)
def test_suspect_is_what_was_written_and_what_was_launched_otherwise_each_once(
    extents: list[tuple[int, int]], otherwise: set[int]
) -> None:
    grid = BlockGrid(COUNT * 4096, 4096)
    launched, held = DigestMap(grid), DigestMap(grid)
    for index in otherwise:
        held[index] = b"x" * DIGEST_BYTES
    ranges = [(start * 4096, length * 4096) for start, length in extents]
    written = {block for start, length in extents for block in range(start, min(start + length, COUNT))}
    found = list(_suspects(grid.covering(ranges, _SCAN_BLOCKS), launched, held))
    assert found == sorted(written | otherwise)


@pytest.fixture
def instances(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(accel.ENVIRONMENT, "tcg")
    yield
    for instance in bench.site.instances():
        bench.site.end(instance.instance_id)


@pytest.mark.qemu
@pytest.mark.usefixtures("instances")
def test_a_stopped_instance_is_captured_onto_a_newer_point_than_it_was_launched_from(
    bench: Bench, pusher: Pusher
) -> None:
    launched = BOOT_SECTOR + bytes(BLOCK - 512) + make_image(9, seed=1) + bytes(6 * BLOCK)
    first = pusher.push(launched)
    pusher.push(launched[: 12 * BLOCK] + b"\x07" * BLOCK + launched[13 * BLOCK :])
    spec = InstanceSpec(
        instance_id="i-1",
        run_id="run-1",
        server_id=SERVER.id,
        server_name=SERVER.name,
        points=[(VolumeKey(SERVER.id, 0), first.id)],
        machine_id=str(uuid.UUID(int=7)),
        memory_mib=64,
        cpus=1,
    )
    bench.site.launch(spec)
    eventually(lambda: "written" in bench.site.console("i-1"))
    bench.site.stop("i-1")
    eventually(lambda: bench.site.watch("i-1").state is InstanceState.STOPPED)

    point_id = capture(bench.receiver, bench.site, bench.rows, SERVER, "i-1", "final", "run-1.3")
    with contextlib.closing(bench.site.open_instance_volume("i-1", 0)) as io:
        wanted = bytes(io.read(0, len(launched)))
    assert wanted[WRITES_AT : WRITES_AT + 10] == BOOT_SECTOR[:10], "the guest wrote"
    assert wanted[WRITES_AT + 512 :] == launched[WRITES_AT + 512 :]
    assert bench.content(point_id) == wanted
    assert capture(bench.receiver, bench.site, bench.rows, SERVER, "i-1", "final", "run-1.3") == point_id
    assert bench.verify(bench.archive.manifest(SERVER.id, point_id)) == len(wanted)
