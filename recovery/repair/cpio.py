"""Boot archives: the cpio format ("newc") that the Linux kernel unpacks as its first root filesystem."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

_MAGICS = (b"070701", b"070702")
_HEADER_BYTES = 110
_TRAILER = "TRAILER!!!"
_MAX_NAME_BYTES = 4096


class BadArchive(ValueError):
    """The bytes are no such archive."""


class Stream(Protocol):
    def read(self, length: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """`mode` with its file type, as in stat. `content` is a link's target."""

    name: str
    mode: int
    content: bytes = b""


def folder(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def pack(entries: Iterable[Entry]) -> bytes:
    """An archive, padded so that another can follow it."""
    packed = bytearray()
    for number, entry in enumerate([*entries, Entry(_TRAILER, 0)], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        packed += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        packed += bytes(-len(packed) % 4) + entry.content
        packed += bytes(-len(packed) % 4)
    return bytes(packed + bytes(-len(packed) % 512))


def names(stream: Stream) -> Iterator[tuple[str, int]]:
    """(name, mode) of each entry up to the archive's trailer, where the stream is left. Raises BadArchive."""
    while True:
        header = _exactly(stream, _HEADER_BYTES)
        if not header.startswith(_MAGICS):
            raise BadArchive("an entry does not begin as one should")
        try:
            fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER_BYTES, 8)]
        except ValueError as error:
            raise BadArchive("an entry's header holds no numbers") from error
        mode, size_bytes, name_bytes = fields[1], fields[6], fields[11]
        if not 0 < name_bytes <= _MAX_NAME_BYTES:
            raise BadArchive(f"an entry's name has {name_bytes} bytes")
        name = _exactly(stream, name_bytes + -(_HEADER_BYTES + name_bytes) % 4)[: name_bytes - 1]
        _skip(stream, size_bytes + -size_bytes % 4)
        text = name.decode(errors="replace")
        if text == _TRAILER:
            return
        yield text.removeprefix("./").removeprefix("/"), mode


def _exactly(stream: Stream, length: int) -> bytes:
    content = b""
    while len(content) < length:
        more = stream.read(length - len(content))
        if not more:
            raise BadArchive("it ends within an entry")
        content += more
    return content


def _skip(stream: Stream, length: int) -> None:
    while length:
        skipped = len(stream.read(min(length, 1 << 20)))
        if not skipped:
            raise BadArchive("it ends within an entry")
        length -= skipped
