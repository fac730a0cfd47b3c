"""The small signed files that make recovery points self-describing: <server>/documents/<name>."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.protocol.errors import NotFound
from recovery.sites.local.durable import check_name, make_folder, storage_errors, sync_folder, write_file

_FOLDER = "documents"


class Documents:
    """Raises NotFound, StorageError, StorageFull; SiteError for a name that cannot be a file's."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, server_id: str, name: str, content: bytes) -> None:
        path = self._path(server_id, name)
        with storage_errors(f"write the document {name} of {server_id}"):
            make_folder(path.parent)
            write_file(path, content)

    def read(self, server_id: str, name: str) -> bytes:
        path = self._path(server_id, name)
        with storage_errors(f"read the document {name} of {server_id}"):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                raise NotFound(f"there is no document {name} of server {server_id}") from None

    def delete(self, server_id: str, name: str) -> None:
        path = self._path(server_id, name)
        with storage_errors(f"delete the document {name} of {server_id}"):
            if path.exists():
                path.unlink()
                sync_folder(path.parent)

    def names(self, server_id: str | None = None) -> Iterator[tuple[str, str]]:
        """(server_id, name), by name."""
        with storage_errors("list the documents"):
            if server_id is None:
                found = sorted(self._root.glob(f"*/{_FOLDER}/*"))
            else:
                found = sorted((self._root / check_name(server_id, "a server") / _FOLDER).glob("*"))
        for path in found:
            if not path.name.startswith("."):  # a write that was cut
                yield path.parent.parent.name, path.name

    def _path(self, server_id: str, name: str) -> Path:
        return self._root / check_name(server_id, "a server") / _FOLDER / check_name(name, "a document")
