"""PNG and APNG files that lie or explode, and the honest images that hostile ones are made from."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

EDGE_PX = 96
"""Of the honest images that the others are made from."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BOMB_BYTES = 300_000_000


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One file.

    Attributes:
        data: Its bytes.
        may_be_taken: True where its pixels are whole and honest, whatever else it holds.
    """

    data: bytes
    may_be_taken: bool = False


@cache
def honest(file_format: str = "PNG", *, edge_px: int = EDGE_PX, mode: str = "RGB", **options: object) -> bytes:
    """Return an honest image of a format."""
    rng = np.random.default_rng(edge_px)
    grey = np.clip(120 + rng.normal(0, 10, (edge_px, edge_px)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)).convert(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """Return a PNG chunk, with its own checksum unless told another."""
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


def png_header(width: int, height: int, *, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """Return a PNG's first chunk."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(*chunks: bytes) -> bytes:
    """Return a PNG of these chunks."""
    return _PNG_SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


@cache
def zeros_deflated(n_bytes: int) -> bytes:
    """Return a zlib stream of zeros, a thousandth of what it unfolds to."""
    packer = zlib.compressobj(9)
    block = bytes(1_000_000)
    packed = [packer.compress(block) for _ in range(n_bytes // len(block))]
    return b"".join([*packed, packer.compress(bytes(n_bytes % len(block))), packer.flush()])


def _with_chunk(extra: bytes) -> bytes:
    """Return the honest PNG with a chunk behind its header."""
    data = honest()
    behind = len(_PNG_SIGNATURE) + 25
    return data[:behind] + extra + data[behind:]


def hostile_pngs() -> Iterator[tuple[str, Hostile]]:
    small = zeros_deflated(1 + 3 * EDGE_PX)
    flat = zlib.compress(bytes((1 + 3 * EDGE_PX) * EDGE_PX))
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 1_000_000), (1_000_000, 1)):
        yield f"png-of-{width}x{height}", Hostile(data=png(png_header(width, height), chunk(b"IDAT", small)))
    for width, height in ((0, EDGE_PX), (EDGE_PX, 0), (0, 0), (2**32 - 1, 2**32 - 1)):
        yield f"png-of-{width}x{height}", Hostile(data=png(png_header(width, height), chunk(b"IDAT", flat)))
    bits = zeros_deflated(30_000 * (1 + 30_000 // 8))
    bomb = png(png_header(30_000, 30_000, depth=1, colour=0), chunk(b"IDAT", bits))
    yield "png-whole-of-900-megapixels", Hostile(data=bomb)
    frame = png_header(EDGE_PX, EDGE_PX)
    too_much = chunk(b"IDAT", zeros_deflated(BOMB_BYTES))
    yield "png-idat-unfolds-to-300-mb", Hostile(data=png(frame, too_much), may_be_taken=True)
    yield "png-idat-too-short", Hostile(data=png(frame, chunk(b"IDAT", small)))
    yield "png-without-idat", Hostile(data=png(frame))
    yield "png-idat-is-noise", Hostile(data=png(frame, chunk(b"IDAT", np.random.default_rng(1).bytes(5000))))
    yield "png-two-headers", Hostile(data=png(frame, png_header(2000, 2000), chunk(b"IDAT", flat)), may_be_taken=True)
    yield "png-header-behind-the-pixels", Hostile(data=png(chunk(b"IDAT", flat), frame))
    yield "png-chunk-longer-than-the-file", Hostile(data=_with_chunk(struct.pack(">I", 2**31 - 1) + b"tEXt" + bytes(8)))
    yield "png-wrong-checksum", Hostile(data=png(frame, chunk(b"IDAT", flat, crc=0)))
    yield (
        "png-palette-of-257",
        Hostile(data=png(png_header(EDGE_PX, EDGE_PX, colour=3), chunk(b"PLTE", bytes(257 * 3)), chunk(b"IDAT", flat))),
    )
    yield "png-index-without-palette", Hostile(data=png(png_header(EDGE_PX, EDGE_PX, colour=3), chunk(b"IDAT", flat)))
    for depth, colour in ((3, 2), (16, 3), (0, 0), (255, 255)):
        header = png_header(EDGE_PX, EDGE_PX, depth=depth, colour=colour)
        yield f"png-depth-{depth}-colour-{colour}", Hostile(data=png(header, chunk(b"IDAT", flat)))
    bomb_text = zeros_deflated(BOMB_BYTES)
    texts = {
        "ztxt": chunk(b"zTXt", b"Comment\0\0" + bomb_text),
        "itxt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb_text),
        "iccp": chunk(b"iCCP", b"profile\0\0" + bomb_text),
        "text": chunk(b"tEXt", b"Comment\0" + b"A" * 900_000),
        "exif": chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(200)),
    }
    for kind, extra in texts.items():
        yield f"png-with-{kind}-bomb", Hostile(data=_with_chunk(extra), may_be_taken=True)
    many = b"".join(chunk(b"tEXt", b"k\0v") for _ in range(20_000))
    yield "png-with-20000-texts", Hostile(data=_with_chunk(many), may_be_taken=True)
    deep = png(
        png_header(EDGE_PX, EDGE_PX, depth=16), chunk(b"IDAT", zlib.compress(bytes((1 + 6 * EDGE_PX) * EDGE_PX)))
    )
    yield "png-16-bit", Hostile(data=deep, may_be_taken=True)
    for name, (width, height, left, frames) in {
        "frames": (EDGE_PX, EDGE_PX, 0, 50),
        "frame-beside-the-canvas": (EDGE_PX, EDGE_PX, 50, 2),
        "frame-larger-than-the-canvas": (5000, 5000, 0, 2),
        "frame-of-2-gigapixels": (2**31 - 1, 1, 0, 2),
        "frame-of-nothing": (0, 0, 0, 2),
        "4-billion-frames-announced": (EDGE_PX, EDGE_PX, 0, 2**32 - 1),
    }.items():
        yield f"apng-{name}", Hostile(data=_apng(width, height, left, frames, flat), may_be_taken=True)


def _apng(width: int, height: int, left: int, frames: int, flat: bytes) -> bytes:
    control = chunk(b"acTL", struct.pack(">II", frames, 0))
    first = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, EDGE_PX, EDGE_PX, 0, 0, 1, 10, 0, 0))
    others = b"".join(
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * n + 1, width, height, left, 0, 1, 10, 0, 0))
        + chunk(b"fdAT", struct.pack(">I", 2 * n + 2) + flat)
        for n in range(min(frames, 50) - 1)
    )
    return png(png_header(EDGE_PX, EDGE_PX), control, first, chunk(b"IDAT", flat), others)
