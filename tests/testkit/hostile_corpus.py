"""The hostile corpus: files that lie, explode, never end or are something else; made by a script, none is stored.

    python tests/hostile/make_corpus.py FOLDER      writes them all, to try them on something else

Each file says whether it must be refused, or may be what it claims to be. None is larger than a megabyte or two; what
they unfold to, if one lets them, is up to hundreds of gigabytes.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

EDGE_PX = 96
"""Of the honest images that the others are made from."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BOMB_BYTES = 300_000_000


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One file.

    Attributes:
        data: Its bytes.
        may_be_taken: True where its pixels are whole and honest, whatever else it holds.
    """

    data: bytes
    may_be_taken: bool = False


# --- honest images, to be spoiled -------------------------------------------------------------------------------------


@cache
def honest(file_format: str = "PNG", *, edge_px: int = EDGE_PX, mode: str = "RGB", **options: object) -> bytes:
    """Return an honest image of a format."""
    rng = np.random.default_rng(edge_px)
    grey = np.clip(120 + rng.normal(0, 10, (edge_px, edge_px)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)).convert(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


# --- PNG --------------------------------------------------------------------------------------------------------------


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


def _pngs() -> Iterator[tuple[str, Hostile]]:
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
    too_much = chunk(b"IDAT", zeros_deflated(_BOMB_BYTES))
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
    bomb_text = zeros_deflated(_BOMB_BYTES)
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


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _jpegs() -> Iterator[tuple[str, Hostile]]:
    data = honest("JPEG", quality=90)
    frame = data.index(b"\xff\xc0") + 5
    for height, width in ((65_535, 65_535), (65_500, 8), (0, EDGE_PX), (EDGE_PX, 0)):
        lying = data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]
        # A scan that ends early leaves the rest grey: libjpeg calls that a warning.
        yield f"jpeg-of-{width}x{height}", Hostile(data=lying, may_be_taken=width == 8)
    larger = data[:frame] + struct.pack(">HH", 1900, 1900) + data[frame + 4 :]
    yield "jpeg-of-more-than-its-scan-holds", Hostile(data=larger, may_be_taken=True)
    twelve = data[: frame - 1] + b"\x0c" + data[frame:]
    yield "jpeg-of-12-bits", Hostile(data=twelve)
    components = data[: frame + 4] + b"\xff" + data[frame + 5 :]
    yield "jpeg-of-255-components", Hostile(data=components)
    thumbnail = b"\xff\xe1" + struct.pack(">H", 8 + len(data)) + b"Exif\0\0" + data
    yield "jpeg-thumbnail-and-nothing-else", Hostile(data=data[:2] + thumbnail)
    yield "jpeg-thumbnail-of-a-cut-off-image", Hostile(data=data[:2] + thumbnail + data[2 : len(data) // 2])
    yield "jpeg-with-a-thumbnail", Hostile(data=data[:2] + thumbnail + data[2:], may_be_taken=True)
    yield "jpeg-of-two-pictures", Hostile(data=_mpo(), may_be_taken=True)
    empty_marker = data[:2] + b"\xff\xe5\0\0" + data[2:]
    yield "jpeg-with-a-marker-of-length-0", Hostile(data=empty_marker, may_be_taken=True)
    yield (
        "jpeg-with-a-million-comments",
        Hostile(data=data[:2] + b"\xff\xfe\0\2" * 250_000 + data[2:], may_be_taken=True),
    )
    yield "jpeg-of-20000-scans", Hostile(data=_jpeg_of_scans(20_000))
    exif_loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    looped = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif_loop)) + exif_loop + data[2:]
    yield "jpeg-exif-that-points-to-itself", Hostile(data=looped, may_be_taken=True)
    tables = b"".join(b"\xff\xdb\0\x43" + bytes([n % 4]) + bytes(64) for n in range(1000))
    yield "jpeg-with-tables-of-zeros", Hostile(data=data[:2] + tables + data[2:], may_be_taken=True)


def _jpeg_of_scans(n_scans: int) -> bytes:
    """Return a progressive JPEG in which one scan follows another: each costs a pass over the whole image."""
    data = honest("JPEG", edge_px=1900, quality=5, progressive=True)
    last = data.rindex(b"\xff\xda")
    header = data[last : last + 2 + struct.unpack(">H", data[last + 2 : last + 4])[0]]
    return data[:-2] + header * n_scans + b"\xff\xd9"


def _mpo() -> bytes:
    first, second = Image.open(io.BytesIO(honest("JPEG"))), Image.open(io.BytesIO(honest("JPEG", quality=50)))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


# --- TIFF -------------------------------------------------------------------------------------------------------------


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


def _tiffs() -> Iterator[tuple[str, Hostile]]:
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
    packed = zeros_deflated(_BOMB_BYTES)
    bomb = tiff(_strip(t259=(_SHORT, 1, 8), t279=(_LONG, 1, len(packed))), packed)
    yield "tiff-strip-unfolds-to-300-mb", Hostile(data=bomb, may_be_taken=True)
    yield "tiff-directory-behind-the-end", Hostile(data=b"II*\0" + struct.pack("<I", 2**31))
    yield "tiff-of-65535-tags", Hostile(data=b"II*\0\x08\0\0\0\xff\xff" + bytes(500))
    yield "bigtiff-of-a-petabyte", Hostile(data=b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + bytes(100))
    pages = io.BytesIO()
    page = Image.new("L", (EDGE_PX, EDGE_PX), 99)
    page.save(pages, "TIFF", save_all=True, append_images=[page] * 200)
    yield "tiff-of-201-pages", Hostile(data=pages.getvalue(), may_be_taken=True)


# --- BMP and WebP -----------------------------------------------------------------------------------------------------


def bmp(
    width: int, height: int, *, bits: int = 24, compression: int = 0, offset: int = 54, pixels: bytes = b""
) -> bytes:
    """Return a BMP with this header."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, offset) + info + pixels


def _bmps_and_webps() -> Iterator[tuple[str, Hostile]]:
    pixels = bytes(3 * EDGE_PX**2)
    palette = bytes(4 * 256)
    runs = bytes((255, 7)) * 200
    cases = {
        "of-60000x60000": bmp(60_000, 60_000, pixels=pixels),
        "of-2-gigapixels-squared": bmp(2**31 - 1, 2**31 - 1, pixels=pixels),
        "of-negative-columns": bmp(-EDGE_PX, EDGE_PX, pixels=pixels),
        "of-the-most-negative-row": bmp(EDGE_PX, -(2**31), pixels=pixels),
        "of-nothing": bmp(0, 0, pixels=pixels),
        "cut-off": bmp(EDGE_PX, EDGE_PX, pixels=pixels[: len(pixels) // 2]),
        "pixels-behind-the-end": bmp(EDGE_PX, EDGE_PX, offset=2**31, pixels=pixels),
        "of-17-bits": bmp(EDGE_PX, EDGE_PX, bits=17, pixels=pixels),
        "of-a-jpeg": bmp(EDGE_PX, EDGE_PX, bits=0, compression=4, pixels=honest("JPEG")),
        "of-no-known-compression": bmp(EDGE_PX, EDGE_PX, compression=99, pixels=pixels),
    }
    for name, data in cases.items():
        yield f"bmp-{name}", Hostile(data=data)
    run_length = bmp(EDGE_PX, EDGE_PX, bits=8, compression=1, offset=54 + len(palette), pixels=palette + runs)
    yield "bmp-runs-past-its-end", Hostile(data=run_length, may_be_taken=True)
    jumps = palette + b"\0\2\xff\xff" * 2000 + b"\0\1"
    jumping = bmp(EDGE_PX, EDGE_PX, bits=8, compression=1, offset=54 + len(palette), pixels=jumps)
    yield "bmp-jumps-out-of-its-canvas", Hostile(data=jumping, may_be_taken=True)

    webp = honest("WEBP", lossless=True)
    size = 16_383 - 1 | (16_383 - 1) << 14
    lossless = webp.index(b"VP8L") + 9
    yield "webp-of-16383x16383", Hostile(data=webp[:lossless] + struct.pack("<I", size) + webp[lossless + 4 :])
    yield "webp-riff-of-4-gb", Hostile(data=webp[:4] + struct.pack("<I", 2**32 - 1) + webp[8:], may_be_taken=True)
    yield "webp-cut-off", Hostile(data=webp[: len(webp) // 2])
    frames = io.BytesIO()
    first = Image.new("RGB", (EDGE_PX, EDGE_PX))
    first.save(
        frames, "WEBP", save_all=True, append_images=[Image.new("RGB", first.size, (n, n, n)) for n in range(30)]
    )
    yield "webp-of-31-frames", Hostile(data=frames.getvalue(), may_be_taken=True)
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + b"\xff\xff\xff" * 2
    body = b"WEBP" + extended + webp[12:]
    yield "webp-canvas-of-16-million-squared", Hostile(data=b"RIFF" + struct.pack("<I", len(body)) + body)


# --- what is no image, and what is more than one ----------------------------------------------------------------------


class _Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self._path,)


def pickled_npz(traces: Path) -> bytes:
    """Return an npz whose arrays are pickles that leave a file behind when somebody loads them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("facts", "vectors", "source"):
            array = np.array([_Touch(traces), {}], dtype=object)
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", member.getvalue())
    return buffer.getvalue()


def _strangers() -> Iterator[tuple[str, Hostile]]:
    gif = honest("GIF")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../../../escaped.txt", "out")
        archive.writestr("bomb", bytes(50_000_000))
    script = b"GIF89a=0;/*" + gif[11:] + b"*/=1;alert(document.domain)"
    strangers = {
        "gif": gif,
        "gif-that-is-a-script": script,
        "svg": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b'<svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text><script>alert(1)</script></svg>',
        "laughs": b'<!DOCTYPE l [<!ENTITY a "ha">'
        + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
        + b"]><svg>&j;</svg>",
        "html": b"<html><script>alert(1)</script></html>",
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n%%EOF",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n(/etc/passwd) (r) file\n",
        "heic": struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(400),
        "avif": struct.pack(">I", 24) + b"ftypavif\0\0\0\0mif1avif" + bytes(400),
        "exe": b"MZ\x90\0" + bytes(56) + b"\x80\0\0\0" + bytes(64) + b"PE\0\0" + bytes(500),
        "elf": b"\x7fELF\2\1\1" + bytes(500),
        "zip": zipped.getvalue(),
        "gzip-bomb": b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros_deflated(_BOMB_BYTES)[2:],
        "pickle": pickle.dumps(_Touch(Path("unpickled"))),
        "numpy": b"\x93NUMPY\1\0v\0{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,)}" + bytes(99),
        "exr": b"\x76\x2f\x31\x01\2\0\0\0" + bytes(300),
        "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 99999\n" + bytes(300),
        "pnm": b"P6\n99999 99999\n255\n" + bytes(300),
        "jpeg-2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(300),
        "sun-raster": b"\x59\xa6\x6a\x95" + struct.pack(">7I", 60_000, 60_000, 8, 0, 1, 0, 0) + bytes(300),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 60_000, 60_000, 8, 3) + bytes(300),
        "icon": b"\0\0\1\0\1\0\0\0\0\0\1\0\x18\0\xff\xff\xff\x7f\x16\0\0\0" + bytes(100),
        "python": b"import os; os.system('touch executed')\n",
        "one-byte": b"\x89",
        "zeros": bytes(100_000),
        "noise": np.random.default_rng(7).bytes(100_000),
    }
    for name, data in strangers.items():
        yield f"stranger-{name}", Hostile(data=data)
    yield "polyglot-png-and-zip", Hostile(data=honest() + zipped.getvalue(), may_be_taken=True)
    yield "polyglot-jpeg-and-html", Hostile(data=honest("JPEG") + b"<script>alert(1)</script>", may_be_taken=True)
    yield "polyglot-zip-and-png", Hostile(data=zipped.getvalue() + honest())
    yield "polyglot-bmp-and-pdf", Hostile(data=honest("BMP") + b"%PDF-1.7\n%%EOF", may_be_taken=True)
    for file_format in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        data = honest(file_format)
        for share in (1, 5, 20, 50, 90, 99):
            cut = data[: max(8, len(data) * share // 100)]
            yield f"{file_format.lower()}-{share}-percent", Hostile(data=cut)
        for column in range(0, 64, 3):
            flipped = bytearray(data)
            flipped[min(column, len(data) - 1)] ^= 0xFF
            yield f"{file_format.lower()}-byte-{column}-flipped", Hostile(data=bytes(flipped), may_be_taken=True)


def hostile_files() -> dict[str, Hostile]:
    """Return the corpus by name."""
    return dict([*_pngs(), *_jpegs(), *_tiffs(), *_bmps_and_webps(), *_strangers()])


# --- texts ------------------------------------------------------------------------------------------------------------

NAMES: Mapping[str, str] = {
    "parent": "../../../../etc/passwd",
    "parent-with-backslashes": "..\\..\\..\\windows\\system32\\x",
    "dots": "..",
    "one-dot": ".",
    "absolute": "/etc/passwd",
    "drive": "C:\\windows\\x",
    "share": "\\\\server\\share\\x",
    "stream": "a.png::$DATA",
    "nul": "a\0b",
    "newline": "a\r\nX-Injected: 1",
    "escape": "a\x1b[2Jb",
    "device": "CON",
    "device-with-a-suffix": "nul.png",
    "port": "COM1",
    "long": "a" * 5000,
    "long-in-bytes": "\U0001f9ff" * 64,
    "right-to-left": "a\u202egnp.exe",
    "zero-width": "a\u200bb\ufeff",
    "combining": "a" + "\u0301" * 60,
    "escaped-parent": "%2e%2e%2f%2e%2e%2fx",
    "escaped-nul": "a%00b",
    "overlong": "..%c0%afx",
    "hidden": ".lock",
    "temporary": ".tmp-0123456789abcdef",
    "jobs": ".jobs",
    "recipes": "recipes",
    "format": "%s%n{0}{x.__class__}",
    "template": "{{7*7}}${7*7}",
    "query": "a' OR '1'='1",
    "shell": "a;touch executed;$(touch executed)`touch executed`",
    "trailing-dot": "a.",
    "trailing-space": "a ",
    "space": " ",
    "empty": "",
}
"""Ids and file names."""

JSON_TEXTS: Mapping[str, str] = {
    "not-a-number": '{"role_id":"a","roi_id":"b","ok_scores":[NaN]}',
    "infinite": '{"role_id":"a","roi_id":"b","ok_scores":[1e999]}',
    "deep-list": '{"role_id":"a","roi_id":"b","ok_scores":' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep-object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "only-brackets": "[" * 200_000,
    "long-integer": '{"role_id":"a","roi_id":"b","area_mm2_thr":' + "9" * 100_000 + "}",
    "long-exponent": '{"role_id":"a","roi_id":"b","area_mm2_thr":1e' + "9" * 10_000 + "}",
    "repeated-keys": '{"role_id":"a","role_id":"../x","roi_id":"b","roi_id":{}}',
    "surrogate": '{"role_id":"\\ud800","roi_id":"\\udfff"}',
    "nul": '{"role_id":"a\\u0000","roi_id":"b"}',
    "prototype": '{"role_id":"a","roi_id":"b","__proto__":{"x":1},"__class__":"y"}',
    "many-keys": "{" + ",".join(f'"k{n}":{n}' for n in range(50_000)) + "}",
    "many-scores": '{"role_id":"a","roi_id":"b","ok_scores":[' + ",".join(["0.5"] * 200_000) + "]}",
    "not-utf-8": '{"role_id":"\udcff","roi_id":"b"}',
    "byte-order-mark": '\ufeff{"role_id":"a","roi_id":"b"}',
    "list": "[]",
    "null": "null",
    "text": '"a"',
    "nothing": "",
    "comment": '{"role_id":"a"/**/,"roi_id":"b"}',
    "wrong-types": '{"role_id":{"$gt":""},"roi_id":[1],"mm_per_px":"0.2; DROP","ok_scores":"x","labels":5}',
}
"""Bodies."""


def main(folder: Path) -> None:
    """Write the corpus below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in hostile_files().items():
        (folder / name).write_bytes(file.data)
    for name, text in JSON_TEXTS.items():
        (folder / f"json-{name}").write_bytes(text.encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
