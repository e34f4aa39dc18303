"""Whether a JPEG holds all of its picture, judged up to its end marker.

No decoder at hand says so: where data are missing, libjpeg fills the rest with grey and prints a line. It does the same
with as many bytes as it still needs, whatever they are, and with none where it needs none. So a file is whole if bytes
that are put behind each run of its data change no pixel (``with_bytes_behind_data``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

_SOI, _SOS, _EOI, _DRI = 0xD8, 0xDA, 0xD9, 0xDD
_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
"""Sequential and progressive, coded by Huffman: what cameras and programs write."""
_OTHER_FRAMES: Final = frozenset({0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
_PROGRESSIVE: Final = 0xC2
_COEFFICIENTS: Final = 64

_MAX_SCANS: Final = 1000
"""A progressive JPEG has about ten, and each costs a pass over the whole image; twenty thousand fit into 200 kB."""

# In coded data 0xFF is followed by 0x00 or a restart marker; a marker may be filled up with more of 0xFF.
_DATA_ENDS: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_RESTARTS: Final = re.compile(rb"\xff[\xd0-\xd7]")
_MAX_SEGMENTS: Final = 10_000
_ANYTHING: Final = np.random.default_rng(0).integers(1, 255, 64, dtype=np.uint8).tobytes()
_BLANK_CUT: Final = 8


class DamagedJpeg(ValueError):
    """The file stops before its picture does, or is none."""


@dataclass(frozen=True)
class JpegStructure:
    """Where the parts of a JPEG lie.

    Attributes:
        end: Behind its end marker; what follows is no part of the picture.
        data: Begin and end of each run of coded data, between two markers.
    """

    end: int
    data: tuple[tuple[int, int], ...] = field(repr=False)

    def with_bytes_behind_data(self, file: bytes) -> bytes:
        """Return the file with more bytes behind each run of coded data: pixels change where one was too short."""
        begins = [0, *(end for _, end in self.data)]
        ends = [*begins[1:], self.end]
        return _ANYTHING.join(file[begin:end] for begin, end in zip(begins, ends, strict=True))

    def with_blank_end_cut(self, file: bytes) -> bytes | None:
        """Return the file without the last of the equal bytes that end its coded data, None where there are but a few.

        Where they are the picture's, as flat areas are, its last blocks turn grey; pixels that stay were drawn before.
        """
        begin, end = self.data[-1]
        n_blank = (end - begin) - len(file[begin:end].rstrip(file[end - 1 : end]))
        return None if n_blank < 2 * _BLANK_CUT else file[: end - _BLANK_CUT] + file[end : self.end]


def jpeg_structure(file: bytes) -> JpegStructure:
    """Return where the parts of a JPEG lie.

    Raises:
        DamagedJpeg: If it has no end marker, restart markers are missing, a progressive one lacks scans, or it is coded
            in a way that no camera uses.
    """
    frame: _Frame | None = None
    data: list[tuple[int, int]] = []
    n_scans = interval = 0
    for n_segments, (marker, body, behind) in enumerate(_segments(file)):
        if marker in _OTHER_FRAMES or n_scans > _MAX_SCANS or n_segments > _MAX_SEGMENTS:
            raise DamagedJpeg("coded in an unusual way")
        if marker in _FRAMES:
            if frame is not None:
                raise DamagedJpeg("two frames")
            frame = _Frame.of(marker, body)
        elif marker == _EOI:
            if frame is None or not data or not frame.is_complete:
                raise DamagedJpeg("it ends before its picture does")
            return JpegStructure(behind, tuple(data))
        elif marker == _SOS:
            if frame is None:
                raise DamagedJpeg("a scan without a frame")
            n_scans += 1
            runs = [*_runs(file, behind)]
            if frame.take(body, interval) != len(runs):
                raise DamagedJpeg("a restart marker is missing")
            data += runs
        elif marker == _DRI:
            interval = int.from_bytes(body[:2], "big")
    raise DamagedJpeg("no end marker")


def _segments(file: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker, body and the offset behind of each segment; coded data are passed over."""
    at = 2
    if file[:2] != bytes((0xFF, _SOI)):
        return
    while found := _DATA_ENDS.search(file, at):
        marker, at = found[0][-1], found.end()
        if marker == _EOI:
            yield marker, b"", at
            return
        if marker in (_SOI, 0x01):
            continue
        length = int.from_bytes(file[at : at + 2], "big")
        if length < 2 or at + length > len(file):
            return
        yield marker, file[at + 2 : at + length], at + length
        at += length


def _runs(file: bytes, begin: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the runs of coded data of a scan; between them lie restart markers, which count to 7."""
    end = _DATA_ENDS.search(file, begin)
    if end is None:
        raise DamagedJpeg("no end marker")
    for number, restart in enumerate(_RESTARTS.finditer(file, begin, end.start())):
        if restart[0][1] != 0xD0 + number % 8:
            raise DamagedJpeg("a restart marker is missing")
        yield begin, _without_fill(file, begin, restart.start())
        begin = restart.end()
    yield begin, _without_fill(file, begin, end.start())


def _without_fill(file: bytes, begin: int, end: int) -> int:
    """Return where coded data end that bytes 0xFF may follow, in front of a marker."""
    while end > begin and file[end - 1] == 0xFF:
        end -= 1
    return end


@dataclass(frozen=True)
class _Frame:
    """The size of the picture, and which bits of which coefficients of which components have come.

    Attributes:
        is_progressive: Coefficients come in several scans.
        hw: Height and width, px.
        sampling: Blocks of each component in a unit, across and down.
        missing: For each component the number of low bits that are still missing of each coefficient; -1 for all.
    """

    is_progressive: bool
    hw: tuple[int, int]
    sampling: dict[int, tuple[int, int]]
    missing: dict[int, list[int]]

    @classmethod
    def of(cls, marker: int, body: bytes) -> _Frame:
        if len(body) < 6 or body[0] != 8 or len(body) < 6 + 3 * body[5]:
            raise DamagedJpeg("not of 8 bits")
        components = body[6 : 6 + 3 * body[5]]
        return cls(
            is_progressive=marker == _PROGRESSIVE,
            hw=(int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")),
            sampling={
                name: (max(1, factors >> 4), max(1, factors & 15))
                for name, factors in zip(components[::3], components[1::3], strict=True)
            },
            missing={name: [-1] * _COEFFICIENTS for name in components[::3]},
        )

    def take(self, scan: bytes, interval: int) -> int:
        """Note what a scan brings; return how many runs of coded data it has, with a restart after some units."""
        n = scan[0] if scan else 0
        components, tail = scan[1 : 1 + 2 * n : 2], scan[1 + 2 * n :]
        if not components or len(tail) < 3 or not set(components) <= self.missing.keys():
            raise DamagedJpeg("a scan of nothing")
        first, last, low = (tail[0], tail[1], tail[2] & 15) if self.is_progressive else (0, _COEFFICIENTS - 1, 0)
        for component in components:
            for coefficient in range(first, min(last, _COEFFICIENTS - 1) + 1):
                self.missing[component][coefficient] = low
        return 1 if interval == 0 else math.ceil(self._n_units(components) / interval)

    def _n_units(self, components: bytes) -> int:
        most = (max(factors[0] for factors in self.sampling.values()), max(f[1] for f in self.sampling.values()))
        (height, width), (across, down) = self.hw, most
        if len(components) > 1:
            return math.ceil(width / (8 * across)) * math.ceil(height / (8 * down))
        own_across, own_down = self.sampling[components[0]]
        return math.ceil(width * own_across / across / 8) * math.ceil(height * own_down / down / 8)

    @property
    def is_complete(self) -> bool:
        return not any(bits for component in self.missing.values() for bits in component)
