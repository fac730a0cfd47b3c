"""What boot repair needs of a guest's files, wherever they are: in a worker VM, or, in a test, below a folder."""

from __future__ import annotations

from typing import Protocol

MAX_FILE_BYTES = 256 << 20
"""No file that repair reads is larger; a guest's image is not believed."""


class GuestFiles(Protocol):
    """A guest's file tree. Paths are absolute in the guest ("/etc/fstab"); "esp:/EFI/..." is on its EFI partition.

    Symbolic links are followed within the guest's tree, never out of it. Names are compared as the guest's filesystem
    does. Raises RecoveryError when the guest's disk cannot be read or written, or what is there is no plain file.
    """

    def read(self, path: str, limit_bytes: int = MAX_FILE_BYTES) -> bytes | None:
        """The content of a plain file; None if there is none, or it is larger than the limit."""
        ...

    def glob(self, pattern: str) -> list[str]:
        """Paths of what matches a shell pattern (*, ?, [...]), sorted; links to nothing left out."""
        ...

    def write(self, path: str, content: bytes, *, kept_bytes: int = 0, mode: int = 0o644) -> None:
        """Make a plain file hold its first `kept_bytes` as they are, then `content`. What exists keeps its owner, mode
        and labels; what does not is made, with its folders, as root's with `mode`."""
        ...

    def remove(self, path: str) -> None:
        """Absent already: does nothing. Folders that are empty then stay."""
        ...
