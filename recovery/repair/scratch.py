"""Scratch layers: a worker writes into these, and what is below them stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from agent.protocol.errors import RecoveryError
from recovery.sites.local.durable import make_folder, storage_errors
from recovery.sites.local.tools import qemu_img

MAX_VOLUMES = 26
"""A worker's disks have one letter each."""


def lay_over(volumes: Sequence[Path], folder: Path) -> list[Path]:
    """Make a layer over each volume (qcow2 files) in `folder`, which is made anew.

    Raises RecoveryError (too many volumes, or none), ToolMissing, StorageError."""
    if not 1 <= len(volumes) <= MAX_VOLUMES:
        raise RecoveryError(f"a worker takes 1 to {MAX_VOLUMES} volumes, not {len(volumes)}")
    with storage_errors(f"make {folder}"):
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
    layers = [layer(folder, index) for index in range(len(volumes))]
    for volume, over in zip(volumes, layers, strict=True):
        below = ("-F", "qcow2", "-b", str(volume.resolve()))
        qemu_img("create", "-q", "-f", "qcow2", *below, str(over), doing=f"make a layer over {volume}")
    return layers


def layer(folder: Path, index: int) -> Path:
    """Where the layer over a volume lies."""
    return folder / f"volume-{index}.qcow2"
