"""What the inventory says of a server whose boot disk is an image file: that disk's firmware and system, as far as its
partition table and first bytes tell. This machine's own answers would be about the wrong machine: what no image tells
(name, processors, memory, addresses) is unknown.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

_SECTOR_BYTES = 512
_MAX_PARTITIONS = 128
_MIN_ENTRY_BYTES = 128
_EFI = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
_BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649").bytes_le
_DOS_EFI = b"\xef"


def describe_image(paths: Sequence[str]) -> dict[str, Any]:
    """For a boot disk (the first path) that is an image file: what replaces the inventory's `os`, `boot_mode`,
    `boot_findings`, `boots_on`, `boot_files` and what nobody knows. Empty for a device, and for none. Never raises."""
    try:
        if not paths or not Path(paths[0]).is_file():
            return {}
        with open(paths[0], "rb") as image:
            partitions = [(kind, _at(image, start)) for kind, start in _partitions(_at(image, 0), image)]
    except OSError:
        return {}
    kinds = {kind for kind, _ in partitions}
    is_uefi = bool(kinds & {_EFI, _DOS_EFI}) and _BIOS_BOOT not in kinds
    is_windows = any(head[3:11] == b"NTFS    " for _, head in partitions)
    return {
        "os": "Windows" if is_windows else "an image file",
        "boot_mode": "uefi" if is_uefi else "bios",
        "boot_findings": [],
        "boots_on": [],
        "boot_files": None,
        "hostname": None,
        "kernel": None,
        "architecture": None,
        "cpus": None,
        "memory_mib": None,
        "network": [],
    }


def _at(image: BinaryIO, offset: int) -> bytes:
    """The sector there; empty behind the image's end, wherever a table says it is."""
    if offset >= os.fstat(image.fileno()).st_size:
        return b""
    image.seek(offset)
    return image.read(_SECTOR_BYTES)


def _partitions(first_sector: bytes, image: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(type, where it begins in bytes) of each in a GPT, else a DOS table; a type of one byte is a DOS table's."""
    header = _at(image, _SECTOR_BYTES)
    if header[:8] == b"EFI PART" and len(header) == _SECTOR_BYTES:
        table, count, size = struct.unpack_from("<QII", header, 72)
        for number in range(min(count, _MAX_PARTITIONS) if _MIN_ENTRY_BYTES <= size <= _SECTOR_BYTES else 0):
            entry = _at(image, table * _SECTOR_BYTES + number * size)
            if len(entry) >= 40 and any(entry[:16]):
                yield entry[:16], int.from_bytes(entry[32:40], "little") * _SECTOR_BYTES
    elif first_sector[510:512] == b"\x55\xaa":
        for number in range(4):
            entry = first_sector[446 + 16 * number : 462 + 16 * number]
            if entry[4]:
                yield entry[4:5], int.from_bytes(entry[8:12], "little") * _SECTOR_BYTES
