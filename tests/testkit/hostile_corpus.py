"""The hostile corpus: files that lie, explode, never end or are something else; made by a script, none is stored.

Each file says whether it must be refused, or may be what it claims to be. None is larger than a megabyte or two; what
they unfold to, if one lets them, is up to hundreds of gigabytes.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.testkit.hostile_png import (
    BOMB_BYTES,
    EDGE_PX,
    Hostile,
    honest,
    hostile_pngs,
    zeros_deflated,
)
from tests.testkit.hostile_tiff import hostile_tiffs

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
        "gzip-bomb": b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros_deflated(BOMB_BYTES)[2:],
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
    return dict([*hostile_pngs(), *_jpegs(), *hostile_tiffs(), *_bmps_and_webps(), *_strangers()])
