from __future__ import annotations

import struct
import zlib

import pytest

from recovery.sites.local.png import from_ppm

RED, GREEN = b"\xff\x00\x00", b"\x00\xff\x00"


def test_a_ppm_becomes_a_png_with_the_same_pixels() -> None:
    png = from_ppm(b"P6\n2 2\n255\n" + RED + GREEN + GREEN + RED)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(kind + content),)
        chunks[kind], at = content, at + 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (2, 2, 8, 2, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0" + RED + GREEN + b"\0" + GREEN + RED
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize("picture", [b"", b"P5\n1 1\n255\n\0", b"P6\n2 2\n255\n" + RED, b"P6\n0 0\n255\n"])
def test_what_is_no_whole_picture_is_refused(picture: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        from_ppm(picture)
