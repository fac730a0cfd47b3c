"""The header of a qcow2 file that is written to: where its tables are. (QEMU: docs/interop/qcow2.txt)"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from agent.protocol.errors import StorageError
from recovery.sites.local.disk_file import DiskFile

COPIED = 1 << 63
"""In an entry that leads to a cluster which is used once: it may be written to where it is."""
PLACE = (1 << 56) - 512
"""The bits of an entry that say where a cluster or table is."""
REFCOUNT_TABLE_FIELD = 48
"""Where the header says where the table of refcounts is, and how many clusters it takes."""
REFCOUNT_TABLE = struct.Struct(">QI")
REFCOUNT_BYTES = 2
ENTRY_BYTES = 8

_VERSION = 3
_REFCOUNT_ORDER = 4  # 1 << 4 bits each
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQI")


@dataclass(frozen=True, slots=True)
class Layout:
    """`cluster_bytes` is what is allocated at once; the table of level 1 has `l1_entries`, each for a table of level 2
    that is one cluster long."""

    cluster_bytes: int
    size_bytes: int
    has_backing: bool
    l1_place: int
    l1_entries: int
    refcount_place: int
    refcount_clusters: int

    @property
    def table_entries(self) -> int:
        """Clusters that one table of level 2 leads to."""
        return self.cluster_bytes // ENTRY_BYTES


def read_layout(file: DiskFile) -> Layout:
    """Raises StorageError, also for a file that uses more of the format than `qemu-img create` does by itself."""
    (
        magic, version, backing_place, _backing_bytes, cluster_bits, size_bytes, crypt_method, l1_entries, l1_place,
        refcount_place, refcount_clusters, snapshots, _snapshots_place, incompatible, _compatible, autoclear,
        refcount_order,
    ) = _HEADER.unpack(file.read_cached(0, _HEADER.size))  # fmt: skip
    if magic != b"QFI\xfb":
        raise StorageError(f"{file.path} is no qcow2 file", "restore it from a copy of the site's folder")
    plain = (_VERSION, 0, 0, 0, 0, _REFCOUNT_ORDER)
    if (version, crypt_method, snapshots, incompatible, autoclear, refcount_order) != plain:
        raise StorageError(
            f"{file.path} is no plain qcow2 file of version 3, or one that was not closed in order",
            "qemu-img check and qemu-img info say more",
        )
    cluster_bytes = 1 << cluster_bits
    if l1_entries * (cluster_bytes // ENTRY_BYTES) * cluster_bytes < size_bytes:
        raise StorageError(f"{file.path} has a header that is damaged", "restore it from a copy of the site's folder")
    return Layout(
        cluster_bytes=cluster_bytes,
        size_bytes=size_bytes,
        has_backing=backing_place != 0,
        l1_place=l1_place,
        l1_entries=l1_entries,
        refcount_place=refcount_place,
        refcount_clusters=refcount_clusters,
    )
