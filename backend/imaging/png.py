"""PNG files (ISO/IEC 15948): written, and unpacked for a decoder that takes long to inflate.

Both with ISA-L, which takes a fraction of the time of zlib, and OpenCV brings zlib.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP = 2

_STORED_HEADER = b"\x78\x01"
_MAX_STORED_BLOCK = 65_535

_MAX_UNPACKED = 1 << 24
"""Bytes of pixels that are unpacked; a larger picture would only be held once more."""


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return [H, W] or [H, W, 3] (BGR) uint8 pixels as a PNG file.

    Written here and not by OpenCV, whose zlib takes four times as long for no smaller a file; a heat map is part of
    every answer.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"cannot encode an array of shape {pixels.shape} and dtype {pixels.dtype} as PNG")
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[:, :, ::-1]).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), dtype=np.uint8)
    filtered[:, 0] = _FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    colour_type = 0 if pixels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    body = isal_zlib.compress(filtered.data, 1)
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", body), _chunk(b"IEND", b"")))


def unpacked_png(data: bytes) -> bytes:
    """Return a PNG of the same pixels that holds them stored and not deflated, or ``data`` as it is.

    Most of the time that OpenCV needs for a PNG goes into inflating. What is large, animated, damaged or unusual is
    left as it is: what comes of such a file is for OpenCV to say.

    Args:
        data: The bytes of a PNG file.
    """
    before, deflated, is_over = [], [], False
    for kind, whole, body in _chunks(data):
        if kind == b"IDAT":
            if is_over:
                return data
            deflated.append(body)
        elif kind == b"acTL":
            return data
        elif deflated:
            is_over = True
        else:
            before.append(whole)
    inflate = isal_zlib.decompressobj()
    try:
        pixels = inflate.decompress(b"".join(deflated), _MAX_UNPACKED)
    except isal_zlib.error:  # type: ignore[misc]  # which its stub calls an instance
        return data
    if not inflate.eof:
        return data
    return b"".join((_SIGNATURE, *before, _chunk(b"IDAT", _stored(pixels)), _chunk(b"IEND", b"")))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Yield kind, all bytes and body of every whole chunk; whether its checksum is right is not asked."""
    view, start = memoryview(data), len(_SIGNATURE)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        if end > len(data):
            return
        yield data[start + 4 : start + 8], view[start:end], view[start + 8 : end - 4]
        start = end


def _stored(data: bytes) -> bytes:
    """Return a zlib stream of blocks that are not compressed (RFC 1950, RFC 1951 §3.2.4)."""
    parts = [_STORED_HEADER]
    for start in range(0, max(1, len(data)), _MAX_STORED_BLOCK):
        block = data[start : start + _MAX_STORED_BLOCK]
        is_last = start + _MAX_STORED_BLOCK >= len(data)
        parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join((*parts, struct.pack(">I", isal_zlib.adler32(data))))


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)))
