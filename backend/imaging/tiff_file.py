"""TIFF files taken apart: what their tags say, and the values of the first page as they lie in the file.

TIFF is many formats. What a camera or a program of this trade writes is read: grey, colour and palettes, of whole
numbers up to 16 bits, kept whole or compressed without loss. Whatever else there is would need a guess, and is refused
by name. Pillow reads the tags. Values are not left to it or to OpenCV: both turn a picture by its orientation, leave
places black whose strips are missing, and write to standard error through libtiff; OpenCV takes white for black at 16
bits and multiplies colours with their opacity, and Pillow keeps 8 bits of 16 of a colour.

TIFF 6.0 (Adobe, 1992) is followed by section: 3 to 6 for colours, 9 PackBits, 13 LZW, 14 prediction, 15 tiles.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from backend.imaging.unpacking import inflated, unpacked_bits, unpacked_lzw, unpacked_packbits

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _MODEL, _FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
_OFFSETS, _CHANNELS, _ROWS, _COUNTS, _MAX_VALUE, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 281, 284, 317
_PALETTE, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _SAMPLE_FORMAT = (
    320,
    322,
    323,
    324,
    325,
    338,
    339,
)

TIFF_BEGINS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BIG: Final = 43

WHITE_IS_ZERO, BLACK_IS_ZERO, COLOUR, PALETTE = range(4)
_OTHER_MODELS: Final = {4: "a mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "raw Bayer"}
_REDUCED: Final = 1
"""Bit of a page's kind: a smaller version of another page."""
_UNSIGNED, _ASSOCIATED = 1, 1
_BIT_DEPTHS: Final = (1, 2, 4, 8, 10, 12, 14, 16)
_MAX_CHANNELS: Final = 4
_MAX_PAGES: Final = 16
_UNCOMPRESSED: Final = 1
_SMALL: Final = 1 << 20

_UNPACK: Final[Mapping[int, Callable[[bytes, int], bytes]]] = {
    _UNCOMPRESSED: lambda data, n_bytes: data[:n_bytes],
    5: unpacked_lzw,
    8: inflated,
    32946: inflated,
    32773: unpacked_packbits,
}
_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class UnreadTiff(ValueError):
    """A TIFF whose pixels are not read; says what they are."""


class DamagedTiff(ValueError):
    """Something is missing."""


@dataclass(frozen=True, kw_only=True)
class TiffValues:
    """The values of a TIFF.

    Attributes:
        values: [H, W, C] uint8, or uint16 for more than 8 bits, as they lie in the file; of colours the first three
            channels are red, green and blue.
        model: ``WHITE_IS_ZERO``, ``BLACK_IS_ZERO``, ``COLOUR`` or ``PALETTE``.
        bits: Of a value: 2^bits - 1 is full.
        palette: [2^bits, 3] uint16, red, green and blue; empty without one.
    """

    values: NDArray[np.uint8] | NDArray[np.uint16]
    model: int
    bits: int
    palette: NDArray[np.uint16]


def tiff_size(file: bytes) -> tuple[int, int]:
    """Return width and height of a TIFF as its pixels lie in the file, px."""
    tags, _ = _first_page(file)
    return int(tags[_WIDTH]), int(tags[_HEIGHT])


def tiff_values(file: bytes) -> TiffValues:
    """Return the values of a TIFF's one picture.

    Raises:
        UnreadTiff: If they are of a kind that is not read.
        DamagedTiff: If some are missing.
        Exception: Whatever else its tags or strips make a parser trip over.
    """
    tags, byte_order = _first_page(file)
    layout = _Layout.of(tags, byte_order)
    values = np.zeros((layout.height, layout.width, layout.channels), np.uint8 if layout.bits <= 8 else np.uint16)
    for part in _parts(tags, layout, len(file)):
        found = _values_of(file[part.offset : part.offset + part.n_bytes], part, layout)
        place = (slice(part.y, part.y + part.rows), slice(part.x, part.x + part.columns))
        if layout.is_planar:
            values[(*place, part.plane)] = found[: part.rows, : part.columns, 0]
        else:
            values[place] = found[: part.rows, : part.columns]
    bits = _declared_bits(tags, layout.bits)
    if int(values.max()) >= 1 << bits:
        raise UnreadTiff("its values are larger than its tags say")
    _check_opacity(tags, values, bits)
    palette = np.asarray(_tuple(tags.get(_PALETTE, ())), dtype=np.uint16).reshape(3, -1).T
    if layout.model == PALETTE and (len(palette) != 1 << bits or int(palette.max()) < 256):
        raise UnreadTiff("its palette is not of 16 bits")
    return TiffValues(values=values, model=layout.model, bits=bits, palette=palette)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How values lie in each strip or tile; tiles may reach over the edge of the picture."""

    width: int
    height: int
    channels: int
    bits: int
    model: int
    byte_order: str
    is_planar: bool
    is_tiled: bool
    part_width: int
    part_height: int
    unpack: Callable[[bytes, int], bytes]
    is_reversed: bool
    is_predicted: bool

    @classmethod
    def of(cls, tags: Mapping[int, Any], byte_order: str) -> _Layout:
        """Return what the tags say; raises UnreadTiff if it is not read."""
        model, compression = tags.get(_MODEL), tags.get(_COMPRESSION, _UNCOMPRESSED)
        if model not in (WHITE_IS_ZERO, BLACK_IS_ZERO, COLOUR, PALETTE):
            raise UnreadTiff(f"its colours are {_OTHER_MODELS.get(model or 0, 'of an unknown kind')}")
        if compression not in _UNPACK:
            raise UnreadTiff("it is compressed in a way that is not read, or that loses pixels")
        if _the_one(tags.get(_SAMPLE_FORMAT, _UNSIGNED)) != _UNSIGNED:
            raise UnreadTiff("its values are signed or with decimals")
        channels, bits = int(tags.get(_CHANNELS, 1)), _the_one(tags.get(_BITS, 1))
        if bits not in _BIT_DEPTHS:
            raise UnreadTiff(f"its values are of {bits} bits")
        if not (3 if model == COLOUR else 1) <= channels <= _MAX_CHANNELS:
            raise UnreadTiff(f"it has {channels} channels")
        predictor, fill_order = tags.get(_PREDICTOR, 1), tags.get(_FILL_ORDER, 1)
        if predictor not in (1, 2) or (predictor == 2 and bits not in (8, 16)):
            raise UnreadTiff("its values are predicted in a way that is not read")
        if fill_order not in (1, 2) or (fill_order == 2 and (compression != _UNCOMPRESSED or bits > 8)):
            raise UnreadTiff("its bits lie in a way that is not read")
        width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
        is_tiled = _TILE_OFFSETS in tags
        part_width = int(tags[_TILE_WIDTH]) if is_tiled else width
        part_height = int(tags[_TILE_HEIGHT]) if is_tiled else min(int(tags.get(_ROWS, height)), height)
        if min(part_width, part_height) < 1 or part_width * part_height > 4 * width * height + _SMALL:
            raise DamagedTiff("strips of no use")
        return cls(
            width=width,
            height=height,
            channels=channels,
            bits=bits,
            model=model,
            byte_order=byte_order,
            is_planar=tags.get(_PLANAR, 1) == 2 and channels > 1,
            is_tiled=is_tiled,
            part_width=part_width,
            part_height=part_height,
            unpack=_UNPACK[compression],
            is_reversed=fill_order == 2,
            is_predicted=predictor == 2,
        )

    @property
    def channels_of_part(self) -> int:
        return 1 if self.is_planar else self.channels

    @property
    def row_bytes(self) -> int:
        return -(-self.part_width * self.channels_of_part * self.bits // 8)


class _Part(NamedTuple):
    """A strip or a tile: where it lies in the file and in the picture, and what of it is in the picture."""

    offset: int
    n_bytes: int
    plane: int
    y: int
    x: int
    rows: int
    columns: int


def _parts(tags: Mapping[int, Any], layout: _Layout, n_bytes: int) -> Iterator[_Part]:
    offsets = _tuple(tags[_TILE_OFFSETS if layout.is_tiled else _OFFSETS])
    counts = _tuple(tags[_TILE_COUNTS if layout.is_tiled else _COUNTS])
    places = [
        (plane, y, x)
        for plane in range(layout.channels if layout.is_planar else 1)
        for y in range(0, layout.height, layout.part_height)
        for x in range(0, layout.width, layout.part_width)
    ]
    if not len(offsets) == len(counts) == len(places):
        raise DamagedTiff("strips are missing")
    for offset, count, (plane, y, x) in zip(offsets, counts, places, strict=True):
        if offset < 8 or count < 1 or offset + count > n_bytes:
            raise DamagedTiff("it stops before its picture does")
        rows, columns = min(layout.part_height, layout.height - y), min(layout.part_width, layout.width - x)
        yield _Part(offset, count, plane, y, x, rows, columns)


def _values_of(data: bytes, part: _Part, layout: _Layout) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the values [rows, columns, channels] of a strip or a tile."""
    rows, n_values = layout.part_height if layout.is_tiled else part.rows, layout.part_width * layout.channels_of_part
    n_bytes = rows * layout.row_bytes
    raw = layout.unpack(data.translate(_REVERSED) if layout.is_reversed else data, n_bytes)
    if len(raw) < n_bytes:
        raise DamagedTiff("strips are too short")
    values: NDArray[np.uint8] | NDArray[np.uint16]
    if layout.bits == 16:
        values = np.frombuffer(raw, f"{layout.byte_order}u2", rows * n_values).astype(np.uint16)
    else:
        values = np.frombuffer(raw, np.uint8, n_bytes)
        if layout.bits != 8:
            values = unpacked_bits(values.reshape(rows, -1), n_values, layout.bits)
    values = values.reshape(rows, layout.part_width, layout.channels_of_part)
    if layout.is_predicted:
        np.cumsum(values, axis=1, out=(values := values.copy()))
    return values


def _first_page(file: bytes) -> tuple[dict[int, Any], str]:
    """Return the tags of the first page, and the byte order as numpy writes it; raises UnreadTiff for more pictures."""
    stream = io.BytesIO(file)
    directory = ImageFileDirectory_v2(file[: 16 if _BIG in file[2:4] else 8])
    seen: set[int] = set()
    first: dict[int, Any] = {}
    at = directory.next
    while at and at not in seen:
        stream.seek(at)
        directory.load(stream)
        page = dict(directory)
        if not page or len(seen) == _MAX_PAGES:
            raise DamagedTiff("its pages lead nowhere")
        if bool(page.get(_SUBFILE, 0) & _REDUCED) != bool(seen):
            raise UnreadTiff("it holds more than one picture" if seen else "its first page is a preview")
        seen.add(at)
        first, at = first or page, directory.next
    if not first:
        raise DamagedTiff("it has no page")
    return first, "<" if file[:2] == b"II" else ">"


def _declared_bits(tags: Mapping[int, Any], bits: int) -> int:
    """Return the bits that count: a largest value of 2ⁿ - 1 says that there are n in the 16 of each value."""
    largest = max(_tuple(tags.get(_MAX_VALUE, ())), default=0)
    n = int(largest + 1).bit_length() - 1
    return n if bits == 16 and 8 <= n < bits and largest == 2**n - 1 else bits


def _check_opacity(tags: Mapping[int, Any], values: NDArray[Any], bits: int) -> None:
    """Raise UnreadTiff if colours are multiplied with an opacity below one: they cannot be had back."""
    extra = _tuple(tags.get(_EXTRA, ()))
    if _ASSOCIATED in extra:
        opacity = values[:, :, values.shape[2] - len(extra) + extra.index(_ASSOCIATED)]
        if int(opacity.min()) < (1 << bits) - 1:
            raise UnreadTiff("its colours are multiplied with their opacity")


def _the_one(values: Any) -> int:
    found = set(_tuple(values))
    if len(found) != 1:
        raise UnreadTiff("its channels differ in their values")
    return int(found.pop())


def _tuple(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, tuple | list) else (values,)
