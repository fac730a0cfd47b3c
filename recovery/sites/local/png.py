"""PNG from the one kind of picture that every QEMU writes (binary PPM): no image library for a few lines."""

from __future__ import annotations

import re
import struct
import zlib

_HEADER = re.compile(rb"P6\s(\d{1,5})\s(\d{1,5})\s255\s")
_RGB_8_BITS = bytes((8, 2, 0, 0, 0))
_NO_FILTER = b"\0"


def from_ppm(picture: bytes) -> bytes:
    """Raises ValueError if it is no whole binary PPM of 8 bits a colour."""
    header = _HEADER.match(picture)
    if header is None:
        raise ValueError("it does not begin as a PPM does")
    width, height = int(header[1]), int(header[2])
    pixels, row_bytes = memoryview(picture)[header.end() :], 3 * width
    if not width or not height or len(pixels) != row_bytes * height:
        raise ValueError(f"{len(pixels)} bytes are not {width} x {height} pixels")
    rows = b"".join(_NO_FILTER + pixels[at : at + row_bytes] for at in range(0, len(pixels), row_bytes))
    chunks = (
        (b"IHDR", struct.pack(">II", width, height) + _RGB_8_BITS),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
