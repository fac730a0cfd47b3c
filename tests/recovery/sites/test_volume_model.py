"""Any sequence of volume operations leaves what a list of byte strings would."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from recovery.sites.contract import Site
from recovery.sites.local import LocalSite
from tests.recovery.sites.conftest import KEY, content

# around the 64 KiB clusters of qcow2, where mistakes would be
sizes = st.sampled_from([512, 65_536 - 512, 65_536, 100_352, 131_072, 200_192, 327_680])
places = st.integers(min_value=0, max_value=327_680)
lengths = st.sampled_from([1, 511, 512, 4096, 65_536, 70_000, 200_000])


class VolumeModel(RuleBasedStateMachine):
    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="understudy-test-")
        self.site: Site = LocalSite(Path(self.folder.name), accel="tcg")
        self.points: dict[str, bytes] = {}
        self.head: bytearray | None = None
        self.count = 0

    def teardown(self) -> None:
        self.site.close()  # type: ignore[attr-defined]
        self.folder.cleanup()

    @rule(size=sizes)
    def make(self, size: int) -> None:
        self.site.make_volume(KEY, size)
        if self.head is None:
            self.head = bytearray(list(self.points.values())[-1]) if self.points else bytearray()
        del self.head[size:]
        self.head.extend(bytes(size - len(self.head)))

    @precondition(lambda self: self.head is not None)
    @rule(place=places, length=lengths, byte=st.integers(0, 255))
    def write(self, place: int, length: int, byte: int) -> None:
        """Byte 0 stands for zeroing."""
        assert self.head is not None
        place %= len(self.head)
        length = min(length, len(self.head) - place)
        io = self.site.open_volume(KEY)
        try:
            if byte:
                io.write(place, bytes([byte]) * length)
            else:
                io.zero(place, length)
            io.flush()
        finally:
            io.close()
        self.head[place : place + length] = bytes([byte]) * length

    @precondition(lambda self: self.head is not None)
    @rule(target=names)
    def snapshot(self) -> str:
        assert self.head is not None
        self.count += 1
        name = f"p{self.count}"
        self.site.snapshot(KEY, name)
        self.points[name] = bytes(self.head)
        self.head = None
        return name

    @rule()
    def revert(self) -> None:
        self.site.revert(KEY)
        self.head = None

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.site.delete_snapshot(KEY, name)
        self.points.pop(name, None)

    @rule(name=names)
    def look(self, name: str) -> None:
        if name in self.points:
            assert content(self.site, KEY, name) == self.points[name]

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        assert self.site.snapshots(KEY) == list(self.points)
        assert self.site.volume_exists(KEY) == (self.head is not None)
        if self.head is not None:
            assert content(self.site, KEY) == self.head
            newest = list(self.points.values())[-1] if self.points else b""
            changed = bytearray(len(self.head))
            for extent in self.site.changes(KEY):
                changed[extent.offset : extent.offset + extent.length] = b"\1" * extent.length
            for at in range(0, len(self.head), 512):
                block = self.head[at : at + 512]
                assert changed[at] or block == newest[at : at + 512].ljust(len(block), b"\0")


def test_any_sequence_of_operations_leaves_what_plain_bytes_would() -> None:
    run_state_machine_as_test(
        VolumeModel,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
