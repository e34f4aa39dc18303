"""The same picture has the same pixels in whatever file it comes; what cannot be read right is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from backend.errors import BadImage
from backend.imaging.image_codec import decode_image, image_size
from tests.testkit.tiff_files import tiff_of, written

LIMIT = 1_000_000
HEIGHT, WIDTH = 40, 56
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
BGR = RGB[:, :, ::-1]
GREY = RGB[:, :, 1]
MIXED = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
OPAQUE = np.full_like(GREY, 255)
CLEAR = np.zeros_like(GREY)
DEEP_RGB = RGB.astype(np.uint16) * 257
DEEP = GREY.astype(np.uint16) * 257
GREY_BGR = np.repeat(GREY[:, :, None], 3, axis=2)
BYTE_ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])


def of_bits(grey: np.ndarray, bits: int) -> np.ndarray:
    """Return 8-bit values as values of other bits."""
    return (grey.astype(np.uint32) * (2**bits - 1) + 127) // 255


def with_alpha(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([colours, alpha])


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(data, max_pixels=LIMIT, name="part.tif")
    assert image_size(data, max_pixels=LIMIT) == image.shape[:2]
    return image


def saved(pixels: np.ndarray, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


COLOUR_TIFFS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda order: tiff_of(RGB, model=2, byte_order=order),
    "of 16 bits": lambda order: tiff_of(DEEP_RGB, model=2, bits=16, byte_order=order),
    "of 12 in 16 bits": lambda order: tiff_of(of_bits(RGB, 12), model=2, bits=16, byte_order=order, t281=[4095] * 3),
    "with alpha": lambda order: tiff_of(with_alpha(RGB, MIXED), model=2, byte_order=order, t338=2),
    "with alpha of nothing": lambda order: tiff_of(with_alpha(RGB, CLEAR), model=2, byte_order=order, t338=2),
    "with a fourth channel": lambda order: tiff_of(with_alpha(RGB, MIXED), model=2, byte_order=order, t338=0),
    "with alpha, 16 bits": lambda order: tiff_of(
        with_alpha(RGB, MIXED).astype(np.uint16) * 257, model=2, bits=16, byte_order=order, t338=2
    ),
    "multiplied with full opacity": lambda order: tiff_of(with_alpha(RGB, OPAQUE), model=2, byte_order=order, t338=1),
    "in strips": lambda order: written(
        [RGB[y : y + 7].tobytes() for y in range(0, HEIGHT, 7)], colour_tags(t278=7), byte_order=order
    ),
    "in deflated strips": lambda order: written(
        [zlib.compress(RGB[y : y + 7].tobytes()) for y in range(0, HEIGHT, 7)],
        colour_tags(t278=7, t259=8),
        byte_order=order,
    ),
    "in tiles": lambda order: written(
        tiles(), colour_tags(t322=16, t323=16), byte_order=order, tiled=True
    ),
    "in planes": lambda order: written(
        [RGB[:, :, channel].tobytes() for channel in range(3)], colour_tags(t284=2), byte_order=order
    ),
    "predicted": lambda order: written(
        [zlib.compress(np.diff(RGB, axis=1, prepend=np.uint8(0)).tobytes())], colour_tags(t259=8, t317=2),
        byte_order=order,
    ),
    "predicted, 16 bits": lambda order: written(
        [zlib.compress(np.diff(DEEP_RGB, axis=1, prepend=np.uint16(0)).astype(f"{order}u2").tobytes())],
        colour_tags(t258=[16] * 3, t259=8, t317=2),
        byte_order=order,
    ),
}  # fmt: skip
GREY_TIFFS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda order: tiff_of(GREY, model=1, byte_order=order),
    "white is zero": lambda order: tiff_of(255 - GREY, model=0, byte_order=order),
    "of 16 bits": lambda order: tiff_of(DEEP, model=1, bits=16, byte_order=order),
    "white is zero, 16 bits": lambda order: tiff_of(65535 - DEEP, model=0, bits=16, byte_order=order),
    "of 10 in 16 bits": lambda order: tiff_of(of_bits(GREY, 10), model=1, bits=16, byte_order=order, t281=1023),
    "of 12 in 16 bits": lambda order: tiff_of(of_bits(GREY, 12), model=1, bits=16, byte_order=order, t281=4095),
    "white is zero, 12 in 16 bits": lambda order: tiff_of(
        4095 - of_bits(GREY, 12), model=0, bits=16, byte_order=order, t281=4095
    ),
    "of 10 bits": lambda order: tiff_of(of_bits(GREY, 10), model=1, bits=10, byte_order=order),
    "of 12 bits": lambda order: tiff_of(of_bits(GREY, 12), model=1, bits=12, byte_order=order),
    "of 14 bits": lambda order: tiff_of(of_bits(GREY, 14), model=1, bits=14, byte_order=order),
    "a largest value that counts only": lambda order: tiff_of(
        DEEP, model=1, bits=16, byte_order=order, t280=3, t281=64000
    ),
    "with alpha": lambda order: tiff_of(with_alpha(GREY, MIXED), model=1, byte_order=order, t338=2),
    "with alpha, 16 bits": lambda order: tiff_of(
        with_alpha(GREY, MIXED).astype(np.uint16) * 257, model=1, bits=16, byte_order=order, t338=2
    ),
    "a palette": lambda order: tiff_of(GREY, model=3, byte_order=order, t320=[v * 257 for v in range(256)] * 3),
    "bits in the other order": lambda order: tiff_of(
        np.packbits(np.unpackbits(GREY[..., None], axis=2)[:, :, ::-1], axis=2)[:, :, 0],
        model=1, byte_order=order, t266=2,
    ),
}  # fmt: skip


def colour_tags(**tags: object) -> dict[int, object]:
    described = {256: WIDTH, 257: HEIGHT, 258: [8] * 3, 259: 1, 262: 2, 277: 3, 278: HEIGHT}
    described = {**described, **{int(name[1:]): tag for name, tag in tags.items()}}
    return {tag: value for tag, value in described.items() if tag != 278 or 322 not in described}


def tiles() -> list[bytes]:
    padded = np.pad(RGB, ((0, 48 - HEIGHT), (0, 64 - WIDTH), (0, 0)))
    return [padded[y : y + 16, x : x + 16].tobytes() for y in range(0, 48, 16) for x in range(0, 64, 16)]


@BYTE_ORDERS
@pytest.mark.parametrize("name", COLOUR_TIFFS)
def test_a_colour_picture_is_the_same_in_every_tiff_that_is_read(name: str, order: str) -> None:
    np.testing.assert_array_equal(decoded(COLOUR_TIFFS[name](order)), BGR)


@BYTE_ORDERS
@pytest.mark.parametrize("name", GREY_TIFFS)
def test_a_grey_picture_is_the_same_in_every_tiff_that_is_read(name: str, order: str) -> None:
    np.testing.assert_array_equal(decoded(GREY_TIFFS[name](order)), GREY_BGR)


@BYTE_ORDERS
@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_of_a_tiff_is_left_alone_as_that_of_a_jpeg_is(orientation: int, order: str) -> None:
    for data in (
        tiff_of(RGB, model=2, byte_order=order, t274=orientation),
        written([zlib.compress(RGB.tobytes())], colour_tags(t259=8, t274=orientation), byte_order=order),
    ):
        np.testing.assert_array_equal(decoded(data), BGR)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate"])
@pytest.mark.parametrize("kind", ["noise", "flat", "ramp", "grey", "bilevel"])
def test_a_tiff_that_another_program_compressed_without_loss_is_the_same(compression: str, kind: str) -> None:
    ramp = np.add.outer(np.arange(150), np.arange(170)).astype(np.uint8)
    pixels = {"noise": RGB, "flat": np.full((300, 200, 3), 77, np.uint8), "grey": ramp, "bilevel": ramp > 128}.get(
        kind, np.dstack([ramp, ramp // 2, ramp])
    )
    image = decoded(saved(pixels, "TIFF", compression=compression))
    shown = pixels * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    np.testing.assert_array_equal(image[:, :, ::-1] if pixels.ndim == 3 else image[:, :, 0], shown)


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_a_tiff_by_opencv_is_the_same(compression: int) -> None:
    for pixels, expected in ((BGR, BGR), (BGR.astype(np.uint16) * 257, BGR), (DEEP, GREY_BGR)):
        data = cv2.imencode(".tif", pixels, [cv2.IMWRITE_TIFF_COMPRESSION, compression])[1].tobytes()
        np.testing.assert_array_equal(decoded(data), expected)


def pages(*kinds: int) -> bytes:
    """Return a TIFF of pages; 1 is a smaller version of another one."""
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(RGB if kind == 0 else RGB[::2, ::2]) for kind in kinds)
    first.encoderinfo = {}
    for page, kind in zip(others, kinds[1:], strict=True):
        page.encoderinfo = {"tiffinfo": {254: kind}}
    first.save(buffer, "TIFF", save_all=True, append_images=others, tiffinfo={254: kinds[0]})
    return buffer.getvalue()


REFUSED = {
    "CMYK": (lambda: tiff_of(with_alpha(RGB, CLEAR), model=5), "CMYK"),
    "LAB": (lambda: tiff_of(RGB, model=8), "CIELab"),
    "YCbCr": (lambda: tiff_of(RGB, model=6), "YCbCr"),
    "Bayer": (lambda: tiff_of(GREY, model=32803), "raw Bayer"),
    "a palette of 8 bits": (lambda: tiff_of(GREY, model=3, t320=[*range(256)] * 3), "palette"),
    "half opaque colours": (lambda: tiff_of(with_alpha(RGB, MIXED), model=2, t338=1), "opacity"),
    "half opaque grey": (lambda: tiff_of(with_alpha(GREY, MIXED), model=1, t338=1), "opacity"),
    "values beyond the largest": (lambda: tiff_of(DEEP, model=1, bits=16, t281=4095), "larger than its tags say"),
    "floats": (lambda: saved(GREY.astype(np.float32), "TIFF"), "decimals"),
    "signed": (lambda: tiff_of(GREY, model=1, bits=16, t339=2), "signed"),
    "32 bits": (lambda: saved(GREY.astype(np.int32), "TIFF"), "signed"),
    "JPEG inside": (lambda: saved(RGB, "TIFF", compression="jpeg"), "colours are YCbCr|compressed"),
    "fax": (lambda: saved(GREY > 99, "TIFF", compression="group4"), "compressed"),
    "two pictures": (lambda: saved(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]), "one picture"),
    "animated WebP": (lambda: saved(RGB, "WEBP", save_all=True, append_images=[Image.fromarray(BGR)]), "one picture"),
    "animated PNG": (lambda: saved(RGB, "PNG", save_all=True, append_images=[Image.fromarray(BGR)]), "one picture"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_need_a_guess_is_refused_by_name(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BadImage, match=reason):
        decode_image(data(), max_pixels=LIMIT)


MISSING = {
    "a strip": lambda: written([RGB[y : y + 8].tobytes() for y in range(0, 32, 8)], colour_tags(t278=8)),
    "a deflated strip": lambda: written(
        [zlib.compress(RGB[y : y + 8].tobytes()) for y in range(0, 32, 8)], colour_tags(t278=8, t259=8)
    ),
    "a tile": lambda: written(tiles()[:-1], colour_tags(t322=16, t323=16), tiled=True),
    "a plane": lambda: written([GREY.tobytes()] * 2, colour_tags(t284=2)),
    "half of a strip": lambda: written([RGB.tobytes()[:1000]], colour_tags()),
    "half of a deflated strip": lambda: written([zlib.compress(RGB.tobytes())[:1000]], colour_tags(t259=8)),
    "half of an LZW strip": lambda: half_blank("tiff_lzw"),
    "half of a run-length strip": lambda: half_blank("packbits"),
}


def half_blank(compression: str) -> bytes:
    data = saved(GREY, "TIFF", compression=compression)
    with Image.open(io.BytesIO(data)) as image:
        (begin,), (n_bytes,) = image.tag_v2[273], image.tag_v2[279]
    half = begin + n_bytes // 2
    return data[:half] + bytes(begin + n_bytes - half) + data[begin + n_bytes :]


@pytest.mark.parametrize("name", MISSING)
def test_a_tiff_that_lacks_strips_is_damaged_and_nothing_is_printed(name: str, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(BadImage, match="truncated or damaged"):
        decode_image(MISSING[name](), max_pixels=LIMIT)
    assert capfd.readouterr() == ("", "")


# -- PNG ----------------------------------------------------------------------------------------------------------


def png_of(values: np.ndarray, *chunks: bytes) -> bytes:
    """Return a PNG of 16-bit values with chunks behind its header."""
    data = cv2.imencode(".png", values.astype(np.uint16))[1].tobytes()
    return data[:33] + b"".join(chunks) + data[33:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_the_significant_bits_of_a_png_are_what_its_values_are_scaled_by(bits: int) -> None:
    np.testing.assert_array_equal(decoded(png_of(of_bits(GREY, bits), chunk(b"sBIT", bytes([bits])))), GREY_BGR)
    np.testing.assert_array_equal(decoded(png_of(of_bits(BGR, bits), chunk(b"sBIT", bytes([bits] * 3)))), BGR)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_values_that_a_writer_has_scaled_up_as_the_standard_says_are_taken_so(bits: int) -> None:
    np.testing.assert_array_equal(decoded(png_of(DEEP, chunk(b"sBIT", bytes([bits])))), GREY_BGR)


def test_without_a_declaration_sixteen_bits_are_sixteen() -> None:
    assert int(decoded(png_of(of_bits(GREY, 12))).max()) == round(4095 / 257)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_png_of_few_bits_reaches_white(bits: int) -> None:
    levels = (GREY >> (8 - bits)).astype(np.uint16)
    each = (levels[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint16)) & 1
    rows = np.packbits(each.astype(np.uint8).reshape(HEIGHT, -1), axis=1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    image = decoded(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    np.testing.assert_array_equal(image[:, :, 0], levels * 255 // (2**bits - 1))


def test_grey_with_alpha_at_sixteen_bits_is_grey() -> None:
    rows = np.dstack([DEEP, MIXED.astype(np.uint16) * 257]).astype(">u2").reshape(HEIGHT, -1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 4, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    np.testing.assert_array_equal(decoded(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")), GREY_BGR)


def test_what_libpng_would_remark_on_is_not_printed(capfd: pytest.CaptureFixture) -> None:
    data = saved(RGB, "PNG")
    profile = chunk(b"iCCP", b"odd\0\0" + zlib.compress(b"no profile"))
    odd = data[:33] + profile + chunk(b"gAMA", bytes(4)) + chunk(b"sBIT", b"\7") + data[33:] + b"trailer"
    np.testing.assert_array_equal(decoded(odd), BGR)
    with pytest.raises(BadImage):
        decode_image(data[:33] + chunk(b"IDAT", zlib.compress(bytes([9] * 7000))) + data[-12:], max_pixels=LIMIT)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("alpha", [OPAQUE, MIXED, CLEAR], ids=["opaque", "mixed", "clear"])
def test_alpha_is_dropped_and_colours_stay(file_format: str, alpha: np.ndarray) -> None:
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    np.testing.assert_array_equal(decoded(saved(with_alpha(RGB, alpha), file_format, **options)), BGR)


# -- JPEG ---------------------------------------------------------------------------------------------------------

JPEG_FORMS = {
    "sequential": {},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "with restart markers": {"restart_marker_blocks": 4},
    "progressive with restart markers": {"progressive": True, "restart_marker_blocks": 3},
    "not subsampled": {"subsampling": 0, "quality": 98},
}


def scene(form: str) -> bytes:
    tone = cv2.GaussianBlur(RNG.integers(0, 256, (150, 170, 3)).astype(np.float32), (0, 0), 2) * 3 - 256
    return saved(np.clip(tone, 0, 255).astype(np.uint8), "JPEG", **{"quality": 88, **JPEG_FORMS[form]})


@pytest.mark.parametrize("form", JPEG_FORMS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("filler", [b"", b"\0", b"\xff", b"\x5a"], ids=["nothing", "zeros", "ones", "text"])
def test_a_jpeg_whose_data_are_missing_is_damaged_though_it_has_an_end(
    form: str, share: float, filler: bytes, capfd: pytest.CaptureFixture
) -> None:
    data = scene(form)
    scans = [n for n in range(len(data)) if data.startswith(b"\xff\xda", n)]
    first = scans[0] + 14
    kept = first + int((len(data) - first - 2) * share)
    with pytest.raises(BadImage, match="truncated or damaged"):
        decode_image(data[:kept] + filler * (len(data) - 2 - kept) + b"\xff\xd9", max_pixels=LIMIT)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", JPEG_FORMS)
@pytest.mark.parametrize(
    "trailer",
    [b"\xff\xda", b"\xff\xda" + bytes(300), b"\xff\xd8\xff\xda more", b"\0" * 700, b"\xff" * 9, b"{json}", b"\xff\xd9"],
)
def test_a_jpeg_is_judged_up_to_its_end_marker(form: str, trailer: bytes, capfd: pytest.CaptureFixture) -> None:
    data = scene(form)
    np.testing.assert_array_equal(decoded(data + trailer), decoded(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["progressive", "progressive with restart markers"])
def test_a_jpeg_that_stops_between_two_scans_is_damaged(form: str) -> None:
    data = scene(form)
    last = data.rfind(b"\xff\xda")
    with pytest.raises(BadImage):
        decode_image(data[: data.rfind(b"\xff\xc4", 0, last)] + b"\xff\xd9", max_pixels=LIMIT)


@pytest.mark.parametrize("grey", [0, 20, 200, 255])
@pytest.mark.parametrize("form", JPEG_FORMS)
def test_a_jpeg_of_nothing_but_one_grey_is_whole(form: str, grey: int) -> None:
    """Its data may be nothing but zeros."""
    data = saved(np.full((200, 300), grey, np.uint8), "JPEG", **{**JPEG_FORMS[form], "quality": 90})
    assert (decoded(data) == grey).all()


def test_bytes_that_fill_up_before_a_marker_do_no_harm() -> None:
    data = scene("sequential")
    np.testing.assert_array_equal(decoded(data[:-2] + b"\xff\xff\xff\xd9"), decoded(data))
