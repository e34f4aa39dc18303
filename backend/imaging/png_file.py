"""PNG files taken apart: every checksum compared, every row counted, and what they declare of their values.

Pillow leaves rows black that a file does not hold, and libpng writes to standard error whatever it does not like. So
the pixels are unpacked here, and handed on in a file of the same picture and nothing else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEADER: Final = struct.Struct(">IIBBBBB")
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE: Final = 3
_MAX_COLOURS: Final = 256
_LAST_FILTER: Final = 4
_FULL_BITS: Final = 16
_FIRST_AND_STEP: Final = (
    (0, 8, 0, 8),
    (0, 8, 4, 8),
    (4, 8, 0, 4),
    (0, 4, 2, 4),
    (2, 4, 0, 2),
    (0, 2, 1, 2),
    (1, 2, 0, 1),
)
"""First row, rows, first column and columns of the seven passes of an interlaced picture."""


class DamagedPng(ValueError):
    """A checksum is wrong, or something is missing."""


@dataclass(frozen=True, kw_only=True)
class PngFile:
    """What a PNG holds.

    Attributes:
        plain: A file of the same picture, not packed.
        bits: Bits of a value that the file declares to be significant; those of its values where it does not say.
        n_frames: Pictures, 0 where it does not say.
    """

    plain: bytes
    bits: int
    n_frames: int


def png_file(data: bytes) -> PngFile:
    """Return what a PNG holds.

    Raises:
        DamagedPng: If a checksum up to its end is wrong, or rows are missing.
        struct.error, KeyError, zlib.error: If it is no PNG.
    """
    chunks: dict[bytes, bytes] = {}
    packed = []
    for kind, body in _chunks(data):
        if not chunks and kind != b"IHDR":
            raise DamagedPng("no header")
        if kind == b"IDAT":
            packed.append(body)
        else:
            chunks.setdefault(kind, body)
    width, height, depth, colour, _, _, interlace = _HEADER.unpack(chunks[b"IHDR"])
    palette = chunks.get(b"PLTE", b"")
    if len(palette) % 3 or not (colour == _PALETTE) <= len(palette) // 3 <= _MAX_COLOURS:
        raise DamagedPng("no palette")
    row_bits = depth * _CHANNELS[colour]
    passes = [(-(-row_bits * columns // 8) + 1, rows) for columns, rows in _passes(width, height, interlace)]
    n_bytes = sum(row_bytes * rows for row_bytes, rows in passes)
    unpacker = zlib.decompressobj()
    pixels = unpacker.decompress(b"".join(packed), n_bytes + 1)
    if len(pixels) < n_bytes or (len(pixels) == n_bytes and not unpacker.eof):
        raise DamagedPng("rows are missing")
    _check_filters(pixels, passes)
    colours = _chunk(b"PLTE", palette) if colour == _PALETTE else b""
    body = _chunk(b"IDAT", zlib.compress(memoryview(pixels)[:n_bytes], 0))
    return PngFile(
        plain=b"".join([_SIGNATURE, _chunk(b"IHDR", chunks[b"IHDR"]), colours, body, _chunk(b"IEND", b"")]),
        bits=_significant_bits(chunks.get(b"sBIT", b""), depth),
        n_frames=int.from_bytes(chunks.get(b"acTL", b"")[:4], "big"),
    )


def _check_filters(pixels: bytes, passes: Sequence[tuple[int, int]]) -> None:
    """Raise DamagedPng if a row begins with the number of a filter that there is not."""
    at = 0
    for row_bytes, rows in passes:
        if max(pixels[at : at + row_bytes * rows : row_bytes]) > _LAST_FILTER:
            raise DamagedPng("an unknown filter")
        at += row_bytes * rows


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of each chunk up to the end; what follows is no part of the file."""
    at = len(_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4 or zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            raise DamagedPng("a checksum is wrong")
        yield kind, body
        at += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join([struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))])


def _passes(width: int, height: int, interlace: int) -> Iterator[tuple[int, int]]:
    """Yield columns and rows of each pass that holds pixels."""
    if not interlace:
        yield width, height
        return
    for row, rows, column, columns in _FIRST_AND_STEP:
        if width > column and height > row:
            yield -(-(width - column) // columns), -(-(height - row) // rows)


def _significant_bits(declared: bytes, depth: int) -> int:
    """Return the largest number that the chunk sBIT names for grey or for the colours, not for alpha."""
    if depth != _FULL_BITS or not declared:
        return depth
    bits = max(declared[: 1 if len(declared) < 3 else 3])
    return bits if 8 <= bits <= depth else depth
