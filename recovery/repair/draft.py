"""Changes to a guest's files, gathered before any is made: what reads through a draft sees what it would become."""

from __future__ import annotations

from recovery.repair.files import MAX_FILE_BYTES, GuestFiles
from recovery.repair.record import FileChange

_REMEMBERED_BYTES = 1 << 20
"""Boot archives and modules are larger, and looked at once."""


class Draft:
    """Files that do not change yet. Each change says why; a file that ends as it was is no change."""

    def __init__(self, files: GuestFiles) -> None:
        self._files = files
        self._before: dict[str, bytes | None] = {}
        self._after: dict[str, bytes | None] = {}
        self._appended: dict[str, FileChange] = {}
        self._erased: dict[str, FileChange] = {}
        self._why: dict[str, list[str]] = {}
        self._modes: dict[str, int] = {}

    def read(self, path: str, limit_bytes: int = MAX_FILE_BYTES) -> bytes | None:
        if path in self._after:
            return self._after[path]
        if path in self._before:
            return self._before[path]
        content = self._files.read(path, limit_bytes)
        if content is None or len(content) <= _REMEMBERED_BYTES:
            self._before[path] = content
        return content

    def text(self, path: str) -> str:
        """Empty if there is none. Bytes that are no UTF-8 come through to `write_text` as they were."""
        return (self.read(path, 16 << 20) or b"").decode(errors="surrogateescape")

    def glob(self, *patterns: str) -> list[str]:
        """As the files are now, without what the draft adds."""
        return [path for pattern in patterns for path in self._files.glob(pattern)]

    def write(self, path: str, content: bytes, why: str, mode: int = 0o644) -> None:
        self._remember(path)
        self._after[path] = content
        self._modes[path] = mode
        self._reason(path, why)

    def write_text(self, path: str, text: str, why: str) -> None:
        if text != self.text(path):
            self.write(path, text.encode(errors="surrogateescape"), why)

    def append(self, path: str, present_bytes: int, content: bytes, why: str) -> None:
        """Add to the end of a file that has this length."""
        self._appended[path] = FileChange(path=path, before=b"", after=content, kept_bytes=present_bytes, why=why)

    def remove(self, path: str, why: str) -> None:
        self._remember(path)
        if self.read(path) is not None:
            self._after[path] = None
            self._reason(path, why)

    def erase(self, path: str, why: str) -> None:
        """Remove a secret: no record keeps what it was, so nothing brings it back."""
        self._erased[path] = FileChange(path=path, before=b"", after=None, why=why)

    def changes(self) -> tuple[FileChange, ...]:
        changed = [
            FileChange(
                path=path,
                before=self._before[path],
                after=after,
                mode=self._modes.get(path, 0o644),
                why="; ".join(self._why[path]),
            )
            for path, after in self._after.items()
            if after != self._before[path]
        ]
        return (*changed, *self._appended.values(), *self._erased.values())

    def _remember(self, path: str) -> None:
        if path not in self._before:
            self._before[path] = self._files.read(path)

    def _reason(self, path: str, why: str) -> None:
        reasons = self._why.setdefault(path, [])
        if why not in reasons:
            reasons.append(why)
