from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from isal import isal_zlib
from PIL import Image

from backend.imaging import png
from backend.imaging.image_codec import decode_image
from backend.imaging.png import encode_png, unpacked_png

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BGR = np.random.default_rng(0).integers(0, 256, (211, 307, 3), dtype=np.uint8)  # Of more than one stored block.
GREY = BGR[:, :, 0].copy()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_file(body: bytes, *between: bytes, interlace: int = 0, hw: tuple[int, int] = (16, 16)) -> bytes:
    """A file of grey pixels whose deflated stream is cut into two chunks, with others before, between, and behind."""
    header = struct.pack(">IIBBBBB", hw[1], hw[0], 8, 0, 0, 0, interlace)
    before, middle, behind = (*between, b"", b"", b"")[:3]
    halves = (chunk(b"IDAT", body[: len(body) // 2]), middle, chunk(b"IDAT", body[len(body) // 2 :]))
    return b"".join((SIGNATURE, chunk(b"IHDR", header), before, *halves, behind, chunk(b"IEND", b"")))


def opened(data: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def of_pillow(mode: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(BGR).convert(mode).save(stream, "PNG", **options)
    return stream.getvalue()


def interlaced() -> bytes:
    """Sixteen by sixteen pixels in the seven passes of Adam7."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = [row for y, dy, x, dx in passes for row in pixels[y::dy, x::dx]]
    return grey_file(zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), interlace=1)


PLAIN = zlib.compress(bytes(17 * 16))
TEXT, ANIMATED = chunk(b"tEXt", b"k\0v"), chunk(b"acTL", struct.pack(">II", 1, 0))
SOUND = {
    "colour": encode_png(BGR),
    "grey": encode_png(GREY),
    "by OpenCV": cv2.imencode(".png", BGR)[1].tobytes(),
    "16 bits": cv2.imencode(".png", BGR.astype(np.uint16) * 257)[1].tobytes(),
    "alpha": of_pillow("RGBA"),
    "palette": of_pillow("P"),
    "palette with alpha": of_pillow("P", transparency=3),
    "one bit": of_pillow("1"),
    "interlaced": interlaced(),
    "texts before and behind": grey_file(PLAIN, TEXT, b"", TEXT),
    "bytes behind the stream": grey_file(PLAIN + b"more"),
    "bytes behind the file": encode_png(GREY) + b"more",
    "a stream of too little": grey_file(zlib.compress(bytes(17 * 9))),
    "a stream of too much": grey_file(zlib.compress(bytes(17 * 90))),
}
STRANGE = {
    "not deflated": grey_file(b"x" * 100),
    "cut off": encode_png(GREY)[:-2000],
    "a wrong checksum": grey_file(PLAIN[:-1] + b"x"),
    "half a stream": grey_file(PLAIN[: len(PLAIN) // 2]),
    "a chunk inside the pixels": grey_file(PLAIN, b"", TEXT),
    "animated": grey_file(PLAIN, ANIMATED),
    "no pixels": SIGNATURE + chunk(b"IEND", b""),
    "nothing": b"",
}


def same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return first is second if first is None or second is None else np.array_equal(first, second)


@pytest.mark.parametrize("name", SOUND)
def test_an_unpacked_file_shows_the_same_picture(name: str) -> None:
    unpacked = unpacked_png(SOUND[name])
    assert unpacked != SOUND[name]
    assert same(opened(unpacked), opened(SOUND[name]))
    if opened(unpacked) is not None:
        with Image.open(io.BytesIO(unpacked)) as image:
            image.verify()  # Every checksum is right.


@pytest.mark.parametrize("name", STRANGE)
def test_what_cannot_be_unpacked_is_left_as_it_is(name: str) -> None:
    assert unpacked_png(STRANGE[name]) == STRANGE[name]


@pytest.mark.parametrize(("limit", "is_unpacked"), [(GREY.size + len(GREY), True), (GREY.size + len(GREY) - 1, False)])
def test_a_large_picture_is_not_held_twice(monkeypatch: pytest.MonkeyPatch, limit: int, is_unpacked: bool) -> None:
    monkeypatch.setattr(png, "_MAX_UNPACKED", limit)
    assert (unpacked_png(SOUND["grey"]) != SOUND["grey"]) == is_unpacked


def test_a_small_file_that_inflates_without_end_takes_no_memory() -> None:
    bomb = grey_file(isal_zlib.compress(bytes(1 << 28), 3))
    assert unpacked_png(bomb) == bomb


def _flipped(data: bytes) -> Iterator[bytes]:
    for position in range(8, len(data), 7):
        yield data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


def test_flipped_bits_never_raise() -> None:
    for data in _flipped(interlaced()):
        unpacked_png(data)


def test_pictures_are_decoded_from_their_unpacked_form(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: (seen.append(bytes(data)), decode(data, flags))[1])
    np.testing.assert_array_equal(decode_image(SOUND["colour"], max_pixels=BGR.size), BGR)
    assert seen == [unpacked_png(SOUND["colour"])]


@pytest.mark.parametrize("pixels", [GREY, BGR], ids=["grey", "colour"])
def test_an_encoded_file_reads_back_as_its_pixels(pixels: np.ndarray) -> None:
    data = encode_png(pixels)
    assert data.startswith(SIGNATURE)
    read = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(read if pixels.ndim == 2 else read[:, :, ::-1], pixels)


def test_what_is_no_picture_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="cannot encode an array"):
        encode_png(np.zeros((4, 4, 7), np.uint8))
