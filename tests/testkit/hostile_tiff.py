"""TIFF files whose tags lie."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping

from PIL import Image

from tests.testkit.hostile_png import BOMB_BYTES, EDGE_PX, Hostile, zeros_deflated


def tiff(tags: Mapping[int, tuple[int, int, int]], pixels: bytes = b"", *, next_ifd: int = 0) -> bytes:
    """Return a little-endian TIFF: 8 bytes of header, the pixels, then one directory.

    Args:
        tags: (type, count, value) by tag.
        pixels: From byte 8 on.
        next_ifd: Where the next directory is said to be; -1 is this one itself.
    """
    where = 8 + len(pixels) + len(pixels) % 2
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    following = where if next_ifd == -1 else next_ifd
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", where) + pixels + bytes(len(pixels) % 2) + directory


_SHORT, _LONG = 3, 4


def _strip(**changes: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """Return the tags of a grey image in one strip; ``t<tag>`` changes one."""
    tags = {
        256: (_LONG, 1, EDGE_PX),
        257: (_LONG, 1, EDGE_PX),
        258: (_SHORT, 1, 8),
        259: (_SHORT, 1, 1),
        262: (_SHORT, 1, 1),
        273: (_LONG, 1, 8),
        277: (_SHORT, 1, 1),
        278: (_LONG, 1, EDGE_PX),
        279: (_LONG, 1, EDGE_PX**2),
    }
    return {**tags, **{int(name[1:]): value for name, value in changes.items()}}


def _tiled(edge_px: int, **changes: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """Return the tags of a grey image in one tile."""
    tags = {tag: value for tag, value in _strip().items() if tag not in (273, 278, 279)}
    tiles = {322: (_LONG, 1, edge_px), 323: (_LONG, 1, edge_px), 324: (_LONG, 1, 8), 325: (_LONG, 1, EDGE_PX**2)}
    return {**tags, **tiles, **{int(name[1:]): value for name, value in changes.items()}}


def hostile_tiffs() -> Iterator[tuple[str, Hostile]]:
    grey = bytes(range(EDGE_PX)) * EDGE_PX
    most = 2**32 - 1
    lies: dict[str, dict[int, tuple[int, int, int]]] = {
        "of-60000x60000": _strip(t256=(_LONG, 1, 60_000), t257=(_LONG, 1, 60_000)),
        "of-4-billion-columns": _strip(t256=(_LONG, 1, most)),
        "of-no-columns": _strip(t256=(_LONG, 1, 0)),
        "strip-of-4-gb": _strip(t279=(_LONG, 1, most)),
        "strip-of-nothing": _strip(t279=(_LONG, 1, 0)),
        "strip-behind-the-end": _strip(t273=(_LONG, 1, most)),
        "strips-without-number": _strip(t273=(_LONG, most, 8), t279=(_LONG, most, 8)),
        "rows-of-no-strip": _strip(t278=(_LONG, 1, 0)),
        "of-65535-channels": _strip(t277=(_SHORT, 1, 65_535)),
        "of-5-channels": _strip(t277=(_SHORT, 1, 5)),
        "of-0-bits": _strip(t258=(_SHORT, 1, 0)),
        "of-64-bits": _strip(t258=(_SHORT, 1, 64)),
        "of-floats": _strip(t258=(_SHORT, 1, 32), t339=(_SHORT, 1, 3)),
        "of-no-known-compression": _strip(t259=(_SHORT, 1, 32_767)),
        "old-jpeg-without-a-table": _strip(t259=(_SHORT, 1, 6), t513=(_LONG, 1, most), t514=(_LONG, 1, most)),
        "fax-of-nothing": _strip(t259=(_SHORT, 1, 4), t258=(_SHORT, 1, 1)),
        "palette-of-nothing": _strip(t262=(_SHORT, 1, 3)),
        "text-of-4-gb": _strip(t270=(2, most, 8)),
        "tile-of-65520x65520": _tiled(65_520),
        "tile-of-30000x30000": _tiled(30_000),
        "tile-of-16x16-and-no-more": _tiled(16),
        "tile-of-no-edge": _tiled(0),
        "tile-of-4-billion": _tiled(most - 15),
        "tiles-without-number": _tiled(16, t324=(_LONG, most, 8), t325=(_LONG, most, 8)),
        "tile-deflated": _tiled(65_520, t259=(_SHORT, 1, 8)),
    }
    # Their pixels are whole; libtiff reads no more than there is.
    harmless = {"text-of-4-gb", "rows-of-no-strip", "strip-of-4-gb", "strip-of-nothing"}
    for name, tags in lies.items():
        yield f"tiff-{name}", Hostile(data=tiff(tags, grey), may_be_taken=name in harmless)
    for name, next_ifd in {"itself": -1, "its-header": 4, "the-end": 2**32 - 1}.items():
        yield f"tiff-followed-by-{name}", Hostile(data=tiff(_strip(), grey, next_ifd=next_ifd), may_be_taken=True)
    packed = zeros_deflated(BOMB_BYTES)
    bomb = tiff(_strip(t259=(_SHORT, 1, 8), t279=(_LONG, 1, len(packed))), packed)
    yield "tiff-strip-unfolds-to-300-mb", Hostile(data=bomb, may_be_taken=True)
    yield "tiff-directory-behind-the-end", Hostile(data=b"II*\0" + struct.pack("<I", 2**31))
    yield "tiff-of-65535-tags", Hostile(data=b"II*\0\x08\0\0\0\xff\xff" + bytes(500))
    yield "bigtiff-of-a-petabyte", Hostile(data=b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + bytes(100))
    pages = io.BytesIO()
    page = Image.new("L", (EDGE_PX, EDGE_PX), 99)
    page.save(pages, "TIFF", save_all=True, append_images=[page] * 200)
    yield "tiff-of-201-pages", Hostile(data=pages.getvalue(), may_be_taken=True)
