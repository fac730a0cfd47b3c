"""Windows drivers that the service's administrator supplies: for guests that have none for the site's virtual hardware.

They lie in one folder, unpacked (virtio-win has them by Windows version, as `viostor/2k19/amd64/*`). A folder in it
that is named like a server has that server's instead, since one driver rarely fits all versions of Windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.protocol.errors import RecoveryError, StorageError
from recovery.repair.target import Bus
from recovery.sites.local.durable import storage_errors

MAX_FILES = 64
MAX_FILE_BYTES = 32 << 20
_LEFT_OUT = (".pdb", ".md", ".txt")
_INSTALLED_BY = ".inf"
_NEEDED: Mapping[Bus, Sequence[str]] = {
    Bus.VIRTIO: ("viostor.sys", "netkvm.inf"),
    Bus.VIRTIO_SCSI: ("vioscsi.sys", "netkvm.inf"),
}
"""For the disk, which a boot needs; for the network card, which Windows then installs."""


@dataclass(frozen=True, slots=True)
class Supplied:
    """`files`: content by name, in lower case."""

    files: Mapping[str, bytes] = field(default_factory=dict)

    def disk_driver(self, service: str) -> bytes | None:
        return self.files.get(f"{service.lower()}.sys")

    @property
    def packages(self) -> Mapping[str, bytes]:
        """What Windows installs at its first start: all files, where there is one that says how."""
        return self.files if any(name.endswith(_INSTALLED_BY) for name in self.files) else {}


NOTHING_SUPPLIED = Supplied()


class DriverFolder:
    """The folder; it need not be there. What is put there counts from the next repair on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, server: str) -> Supplied:
        """Raises RecoveryError (too much of it), StorageError."""
        place = self._place(server)
        files = self._files(place)
        if len(files) > MAX_FILES:
            raise RecoveryError(f"{place} holds {len(files)} drivers' files", "put the few there that its servers need")
        found = {}
        for path in files:
            with storage_errors(f"read the driver {path}"), open(path, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise RecoveryError(f"{path} is no driver: it is larger than {MAX_FILE_BYTES >> 20} MiB", "remove it")
            found[path.name.lower()] = content
        return Supplied(found)

    def missing(self, server: str, bus: Bus) -> list[str]:
        """Files that a Windows without drivers for this bus would need, and that are not here."""
        try:
            there = {path.name.lower() for path in self._files(self._place(server))}
        except StorageError:  # whoever wants to read them is told
            there = set()
        return [name for name in _NEEDED.get(bus, ()) if name not in there]

    def _place(self, server: str) -> Path:
        is_name = Path(server).name == server and server not in ("", ".", "..")
        own = self.folder / server
        return own if is_name and own.is_dir() else self.folder

    def _files(self, place: Path) -> list[Path]:
        with storage_errors(f"look into {place}"):
            if not place.is_dir():
                return []
            found = [path for path in place.iterdir() if path.is_file() and not path.name.startswith(".")]
        return sorted(path for path in found if path.suffix.lower() not in _LEFT_OUT)
