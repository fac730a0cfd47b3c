"""Who else may have the file that a working state is in, and which files are refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol.errors import Conflict, StorageError
from recovery.sites.local.layer_io import LayerIO
from tests.recovery.sites.local.layers import check_locked, create, opened


def test_a_file_that_is_written_to_is_refused_to_qemu_and_to_a_second_writer(tmp_path: Path) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 1 << 20)
    with opened(path):
        check_locked(path)
        with pytest.raises(Conflict, match="another process"):
            LayerIO(path)
        shown = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], capture_output=True, check=True)
        assert json.loads(shown.stdout)["virtual-size"] == 1 << 20
    subprocess.run(["qemu-img", "resize", "-q", path, "+1M"], check=True)


def test_a_file_that_qemu_writes_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 1 << 20)
    other = subprocess.Popen(["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(b"write 0 512\n")
        other.stdin.flush()
        while b"wrote" not in other.stdout.readline():
            pass
        with pytest.raises(Conflict, match="another process"):
            LayerIO(path)
    finally:
        other.communicate(b"quit\n")
    LayerIO(path).close()


def damaged_features(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(72)
        file.write((2).to_bytes(8, "big"))  # marked as corrupt


def lost_refcounts(path: Path) -> None:
    """As if the block of refcounts had rotted: what lies behind seems to be free."""
    with path.open("r+b") as file:
        file.seek(2 * 65_536 + 10)
        file.write(bytes(65_536 - 10))


@pytest.mark.parametrize("damage", [damaged_features, lost_refcounts])
def test_a_damaged_file_is_refused_and_stays_as_it_is(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "head.qcow2"
    create(path, 1 << 20)
    with opened(path) as io:
        io.write(0, b"x" * (1 << 20))
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StorageError):
        LayerIO(path)
    assert path.read_bytes() == before


def test_clusters_that_are_compressed_are_refused(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "head.qcow2"
    raw.write_bytes(b"x" * (1 << 20))
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    with opened(path) as io, pytest.raises(StorageError, match="compressed"):
        io.write(0, b"y" * 512)
