"""TIFF files of any layout, written tag by tag."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

_LONG_TAGS = frozenset({256, 257, 273, 278, 279, 322, 323, 324, 325})


def written(
    parts: Sequence[bytes], tags: Mapping[int, int | Sequence[int]], *, byte_order: str = "<", tiled: bool = False
) -> bytes:
    """Return a TIFF of these strips or tiles; their places are filled in.

    Args:
        parts: The bytes of each.
        tags: Values by tag; SHORT, or LONG for sizes and places.
        byte_order: ``<`` or ``>``.
        tiled: The parts are tiles.
    """
    body, offsets = b"", []
    for part in parts:
        offsets.append(8 + len(body))
        body += part
    body += bytes(len(body) % 2)
    places, counts = (324, 325) if tiled else (273, 279)
    all_tags = {**tags, places: offsets, counts: [len(part) for part in parts]}
    behind = 8 + len(body) + 2 + 12 * len(all_tags) + 4
    entries, longer = b"", b""
    for tag in sorted(all_tags):
        found = all_tags[tag]
        values = [found] if isinstance(found, int) else [*found]
        is_long = tag in _LONG_TAGS
        data = struct.pack(f"{byte_order}{len(values)}{'I' if is_long else 'H'}", *values)
        if len(data) > 4:
            place = behind + len(longer)
            longer += data + bytes(len(data) % 2)
            data = struct.pack(f"{byte_order}I", place)
        entries += struct.pack(f"{byte_order}HHI", tag, 4 if is_long else 3, len(values)) + data.ljust(4, b"\0")
    head = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(f"{byte_order}I", 8 + len(body))
    return head + body + struct.pack(f"{byte_order}H", len(all_tags)) + entries + bytes(4) + longer


def tiff_of(values: np.ndarray, *, model: int, bits: int = 8, byte_order: str = "<", **tags: object) -> bytes:
    """Return a TIFF of values [H, W] or [H, W, C] in one strip; ``t<tag>`` adds or replaces a tag."""
    height, width, channels = np.atleast_3d(values).shape
    if bits in (8, 16):
        body = values.astype(f"{byte_order}u{bits // 8}").tobytes()
    else:
        each = (values.astype(np.uint16)[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint16)) & 1
        body = np.packbits(each.astype(np.uint8).reshape(height, -1), axis=1).tobytes()
    described = {256: width, 257: height, 258: [bits] * channels, 259: 1, 262: model, 277: channels, 278: height}
    return written([body], {**described, **{int(name[1:]): tag for name, tag in tags.items()}}, byte_order=byte_order)
