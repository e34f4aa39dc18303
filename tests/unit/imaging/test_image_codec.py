from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from backend.errors import BadImage, InspectionError, TooLarge
from backend.imaging.image_codec import (
    SUFFIX_BY_FORMAT,
    decode_image,
    encode_png,
    image_suffix,
    pixel_digest,
    to_bgr_uint8,
)
from tests.testkit.fakes import encoded

LIMIT = 1_000_000
HEIGHT, WIDTH = 40, 56


def colours() -> np.ndarray:
    """[40, 56, 3] BGR with a gradient in every channel and some noise."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH, 3))
    return np.clip(np.stack([xs * 4, ys * 6, (xs + ys) * 2], axis=2) + noise, 0, 255).astype(np.uint8)


BGR = colours()
GREY = BGR[:, :, 1].copy()


def pillow(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def opencv(pixels: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def of_mode(mode: str) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(BGR[:, :, ::-1])).convert(mode)


def jpeg_with_thumbnail() -> bytes:
    """A JPEG whose EXIF block holds a whole small JPEG: its own start and end markers come first in the file."""
    thumbnail = pillow(of_mode("RGB").resize((20, 16)), "JPEG")
    first = struct.pack("<HI", 0, 8 + 6)
    at = 8 + 6 + 2 + 2 * 12 + 4
    second = struct.pack("<HHHIIHHIII", 2, 0x201, 4, 1, at, 0x202, 4, 1, len(thumbnail), 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + thumbnail
    data = pillow(of_mode("RGB"), "JPEG", exif=exif)
    assert data.count(b"\xff\xda") == data.count(b"\xff\xd9") == 2
    return data


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, body: bytes, *, colour: int = 0, interlace: int = 0, text: bytes = b"") -> bytes:
    """A PNG file with a right checksum on every chunk, whatever its header says of its body."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlace))
    pixels = chunk(b"IDAT", body[: len(body) // 2]) + chunk(b"IDAT", body[len(body) // 2 :])
    return b"\x89PNG\r\n\x1a\n" + header + text + pixels + text + chunk(b"IEND", b"")


def interlaced_png() -> bytes:
    """The colours in the seven passes of Adam7, with texts before and behind them."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = [row for y, dy, x, dx in passes for row in BGR[y::dy, x::dx, ::-1]]
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return png(WIDTH, HEIGHT, body, colour=2, interlace=1, text=chunk(b"tEXt", b"key\0value"))


LOSSLESS = {
    "png": encoded(BGR),
    "png, packed best": encoded(BGR, optimize=True),
    "png, interlaced": interlaced_png(),
    "png with alpha": pillow(of_mode("RGBA"), "PNG"),
    "png of 16 bits": opencv(BGR.astype(np.uint16) * 257, ".png"),
    "bmp": encoded(BGR, "BMP"),
    "tiff": encoded(BGR, "TIFF"),
    "tiff, LZW": encoded(BGR, "TIFF", compression="tiff_lzw"),
    "tiff, deflate": encoded(BGR, "TIFF", compression="tiff_adobe_deflate"),
    "tiff by OpenCV": opencv(BGR, ".tif"),
    "tiff of 16 bits": opencv(BGR.astype(np.uint16) * 257, ".tif"),
    "webp": encoded(BGR, "WEBP", lossless=True),
}
GREY_LOSSLESS = {
    "png": encoded(GREY),
    "png as colour": encoded(np.repeat(GREY[:, :, None], 3, axis=2)),
    "png with alpha": pillow(Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (WIDTH, HEIGHT), 7)]), "PNG"),
    "png of 16 bits": opencv(GREY.astype(np.uint16) * 257, ".png"),
    "bmp": encoded(GREY, "BMP"),
    "bmp as colour": encoded(np.repeat(GREY[:, :, None], 3, axis=2), "BMP"),
    "tiff": encoded(GREY, "TIFF"),
    "tiff of 16 bits": opencv(GREY.astype(np.uint16) * 257, ".tif"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_colour_picture_is_the_same_whatever_lossless_file_it_comes_in(name):
    image = decode_image(LOSSLESS[name], max_pixels=LIMIT)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, BGR)
    assert pixel_digest(image) == pixel_digest(BGR)


@pytest.mark.parametrize("name", GREY_LOSSLESS)
def test_a_grey_picture_is_the_same_whatever_lossless_file_it_comes_in(name):
    image = decode_image(GREY_LOSSLESS[name], max_pixels=LIMIT)
    np.testing.assert_array_equal(image, np.repeat(GREY[:, :, None], 3, axis=2))


def test_one_bit_pixels_become_black_and_white():
    image = decode_image(pillow(of_mode("1"), "PNG"), max_pixels=LIMIT)
    np.testing.assert_array_equal(image[:, :, 0], np.asarray(of_mode("1")) * 255)
    assert set(np.unique(image)) == {0, 255}


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_becomes_its_colours(transparent):
    palette = of_mode("P")
    options = {"transparency": 3} if transparent else {}
    image = decode_image(pillow(palette, "PNG", **options), max_pixels=LIMIT)
    np.testing.assert_array_equal(image, np.asarray(palette.convert("RGB"))[:, :, ::-1])


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_a_grey_palette_becomes_grey(file_format):
    palette = Image.fromarray(GREY)
    image = decode_image(pillow(palette.convert("P"), file_format), max_pixels=LIMIT)
    np.testing.assert_array_equal(image[:, :, 2], GREY)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_any_colour_model_is_read(mode, progressive):
    data = pillow(of_mode(mode), "JPEG", quality=95, progressive=progressive)
    image = decode_image(data, max_pixels=LIMIT)
    by_pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[:, :, ::-1]
    assert np.abs(image.astype(int) - by_pillow).max() <= 2


@pytest.mark.parametrize(
    ("sixteen", "eight"), [(0, 0), (128, 0), (129, 1), (257, 1), (32768, 128), (65407, 255), (65535, 255)]
)
def test_sixteen_bits_are_divided_by_257_whatever_the_picture_holds(sixteen, eight):
    # 129/257 = 0.502; 65407/257 = 254.502. A dark 16-bit picture stays dark.
    pixels = np.full((16, 16), sixteen, np.uint16)
    assert (decode_image(opencv(pixels, ".png"), max_pixels=LIMIT) == eight).all()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_left_alone(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90°"
    assert decode_image(pillow(of_mode("RGB"), file_format, exif=exif), max_pixels=LIMIT).shape == (HEIGHT, WIDTH, 3)


def test_bgr_pixels_of_every_accepted_form_become_three_contiguous_channels():
    bgr = np.zeros((9, 10, 3), np.uint8)
    bgr[..., 0], bgr[..., 1], bgr[..., 2] = 1, 2, 3
    alpha = np.full((9, 10, 1), 200, np.uint8)
    grey = np.full((9, 10, 1), 5, np.uint8)
    assert (to_bgr_uint8(bgr) == [1, 2, 3]).all()
    assert (to_bgr_uint8(np.concatenate([bgr, alpha], axis=2)) == [1, 2, 3]).all()
    assert (to_bgr_uint8(np.concatenate([grey, alpha], axis=2)) == [5, 5, 5]).all()
    assert (to_bgr_uint8(grey) == [5, 5, 5]).all()
    assert (to_bgr_uint8(grey[:, :, 0]) == [5, 5, 5]).all()
    turned = to_bgr_uint8(bgr.transpose(1, 0, 2)[::-1])
    assert turned.shape == (10, 9, 3)
    assert turned.flags.c_contiguous


@pytest.mark.parametrize(
    "pixels", [np.zeros((9, 9), np.float32), np.zeros((9, 9, 5), np.uint8), np.zeros(9, np.uint8)], ids=["f", "5", "1d"]
)
def test_arrays_that_are_no_picture_are_refused(pixels):
    with pytest.raises(ValueError, match="pixels must be"):
        to_bgr_uint8(pixels)


# -- what must never be decoded -----------------------------------------------------------------------------------

TRUNCATED = {
    **{f"lossless {name}": data for name, data in LOSSLESS.items()},
    "png, grey": GREY_LOSSLESS["png"],
    "png, 1 bit": pillow(of_mode("1"), "PNG"),
    "png, palette": pillow(of_mode("P"), "PNG"),
    "jpeg": pillow(of_mode("RGB"), "JPEG"),
    "jpeg, progressive": pillow(of_mode("RGB"), "JPEG", progressive=True),
    "jpeg, CMYK": pillow(of_mode("CMYK"), "JPEG"),
    "jpeg with a thumbnail": jpeg_with_thumbnail(),
    "jpeg, progressive, with restart markers": pillow(
        of_mode("RGB"), "JPEG", progressive=True, restart_marker_blocks=2
    ),
    "webp, lossy": pillow(of_mode("RGB"), "WEBP"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow remarks on the TIFF tags that were cut off.
@pytest.mark.parametrize("name", TRUNCATED)
def test_a_file_that_stops_anywhere_is_never_decoded_as_if_it_were_whole(name):
    data = TRUNCATED[name]
    whole = decode_image(data, max_pixels=LIMIT)
    cuts = {*range(0, 200, 7), *range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 12, len(data))}
    for cut in sorted(cut for cut in cuts if cut < len(data)):
        try:
            image = decode_image(data[:cut], max_pixels=LIMIT)
        except BadImage:
            continue
        np.testing.assert_array_equal(image, whole, err_msg=f"{name} cut at {cut} of {len(data)}")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", TRUNCATED)
def test_half_a_file_is_refused_also_by_a_decoder_that_would_fill_in_the_rest(name, monkeypatch):
    # What OpenCV did up to its version 4: grey below the place where the file stops.
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    data = TRUNCATED[name]
    assert decode_image(data, max_pixels=LIMIT).shape == (HEIGHT, WIDTH, 3)
    pixels_begin = data.rfind(b"\xff\xda") if "jpeg" in name else 0  # before them, a decoder has nothing to fill in
    for cut in range(pixels_begin + 2, len(data) - 12, max(1, len(data) // 60)):  # 12 bytes end a PNG
        with pytest.raises(BadImage):
            decode_image(data[:cut], max_pixels=LIMIT)


@pytest.mark.parametrize("tail", [b"", b"\0" * 500, b"\xff" * 500])
@pytest.mark.parametrize("name", ["jpeg", "jpeg, progressive", "jpeg with a thumbnail", "png, grey"])
def test_a_half_written_file_is_refused_also_when_its_space_was_reserved(name, tail):
    data = TRUNCATED[name]
    with pytest.raises(BadImage):
        decode_image(data[: len(data) * 2 // 3] + tail, max_pixels=LIMIT)


@pytest.mark.parametrize("name", ["jpeg", "png, grey"])
def test_bytes_behind_a_whole_file_do_no_harm(name):
    data = TRUNCATED[name]
    np.testing.assert_array_equal(
        decode_image(data + b"\0" * 64, max_pixels=LIMIT), decode_image(data, max_pixels=LIMIT)
    )


def test_a_png_with_a_flipped_bit_is_refused_wherever_it_is():
    data = GREY_LOSSLESS["png"]
    for at in range(8, len(data), 37):
        broken = bytearray(data)
        broken[at] ^= 0x10
        with pytest.raises(BadImage):
            decode_image(bytes(broken), max_pixels=LIMIT)


def uncompressed(width: int, height: int) -> bytes:
    return zlib.compress((b"\0" + b"\x20" * width) * height)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100,
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\xff\xd9",
        b"BM",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='50' height='50'/>",
        pillow(of_mode("P"), "GIF"),
        pillow(of_mode("RGB"), "PPM"),
        pillow(of_mode("RGB"), "ICO"),
        pillow(of_mode("L"), "PDF"),
        png(64, 64, uncompressed(64, 32)),  # half of the rows that the header promises
        png(128, 64, uncompressed(64, 64)),
        png(64, 64, b""),
        png(64, 64, uncompressed(64, 64)[:20]),
        png(2_000_000, 8, uncompressed(2_000_000, 8)),  # more columns than OpenCV takes
    ],
    ids=["zeros", "text", "png, signature only", "jpeg, markers only", "jpeg, no header", "bmp, two bytes", "svg",
         "gif", "ppm", "ico", "pdf", "png, too few rows", "png, too few columns", "png, no data", "png, short data",
         "png, very wide"],
)  # fmt: skip
def test_what_is_no_image_of_an_accepted_form_is_a_bad_image(data):
    with pytest.raises(BadImage) as refused:
        decode_image(data, max_pixels=50_000_000, name="part 7.png")
    assert "part 7.png" in refused.value.sentence


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_tiff_of_numbers_that_are_no_pixels_is_a_bad_image(dtype):
    with pytest.raises(BadImage):
        decode_image(pillow(Image.fromarray(GREY.astype(dtype)), "TIFF"), max_pixels=LIMIT)


def test_an_empty_upload_is_named():
    with pytest.raises(BadImage, match=r"'a\.png' is empty"):
        decode_image(b"", max_pixels=LIMIT, name="a.png")


@pytest.mark.parametrize(("hw", "accepted"), [((1, 1), False), ((7, 400), False), ((400, 7), False), ((8, 8), True)])
def test_an_image_needs_eight_pixels_a_side(hw, accepted):
    data = encoded(np.zeros(hw, np.uint8))
    if accepted:
        assert decode_image(data, max_pixels=LIMIT).shape == (*hw, 3)
    else:
        with pytest.raises(BadImage, match="at least 8 px"):
            decode_image(data, max_pixels=LIMIT)


def test_the_limit_on_pixels_is_inclusive_and_says_both_numbers():
    data = encoded(np.zeros((50, 40), np.uint8))
    assert decode_image(data, max_pixels=2000).shape == (50, 40, 3)
    with pytest.raises(TooLarge) as refused:
        decode_image(data, max_pixels=1999)
    assert refused.value.details == {"width": 40, "height": 50, "max_pixels": 1999}


@pytest.mark.parametrize("edge", [7000, 10_000, 13_000, 20_000, 60_000])
def test_a_header_that_announces_too_much_is_refused_before_anything_is_decoded(edge, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    monkeypatch.setattr(Image.Image, "load", never)
    for data in (png(edge, edge, b""), bmp_header(edge)):
        with pytest.raises(TooLarge):
            decode_image(data, max_pixels=40_000_000)


def bmp_header(edge: int) -> bytes:
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, edge, edge, 1, 24, 0, 0, 0, 0, 0, 0)


def zeros_deflated(size: int) -> bytes:
    compressor = zlib.compressobj(1)
    piece = bytes(1 << 20)
    return b"".join([compressor.compress(piece) for _ in range(size >> 20)]) + compressor.flush()


@pytest.mark.parametrize(
    "data", [png(20_000, 20_000, zeros_deflated(400 << 20)), png(16, 16, zeros_deflated(400 << 20))],
    ids=["as many pixels as the header announces", "more than the header announces"],
)  # fmt: skip
def test_two_megabytes_that_unfold_to_400_take_no_memory(data):
    program = """
import resource, sys
from backend.errors import InspectionError
from backend.imaging.image_codec import decode_image
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    assert decode_image(data, max_pixels=40_000_000).shape == (16, 16, 3)
except InspectionError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert int(run.stdout) < 20_000  # kB


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", TRUNCATED)
def test_damaged_bytes_never_raise_anything_but_an_error_for_the_caller(name):
    rng = np.random.default_rng(0)
    data = TRUNCATED[name]
    for turn in range(60):
        broken = np.frombuffer(data, np.uint8).copy()
        reach = min(len(broken), 300) if turn % 2 else len(broken)
        broken[rng.integers(reach, size=3)] = rng.integers(256, size=3)
        try:
            image = decode_image(broken.tobytes(), max_pixels=LIMIT)
        except InspectionError:
            continue
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


# -- digests, suffixes, PNG ---------------------------------------------------------------------------------------


def test_pictures_that_differ_in_pixels_or_size_have_different_digests():
    one = np.zeros((2, 6, 3), np.uint8)
    assert pixel_digest(one) != pixel_digest(one.reshape(3, 4, 3))
    other = one.copy()
    other[1, 5, 2] = 1
    assert pixel_digest(one) != pixel_digest(other)
    assert pixel_digest(other) == pixel_digest(np.asfortranarray(other))
    assert len(pixel_digest(one)) == 64


@pytest.mark.parametrize(("file_format", "suffix"), SUFFIX_BY_FORMAT.items())
def test_a_file_gets_the_suffix_of_its_bytes(file_format, suffix):
    assert image_suffix(encoded(BGR, file_format)) == suffix


@pytest.mark.parametrize("pixels", [GREY, BGR], ids=["grey", "colour"])
def test_an_encoded_file_reads_back_as_its_pixels(pixels):
    read = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    np.testing.assert_array_equal(read if pixels.ndim == 2 else read[:, :, ::-1], pixels)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 7), np.uint8), np.zeros((0, 4), np.uint8), np.zeros((4, 4), np.uint16), np.zeros(4, np.uint8)],
)
def test_what_is_no_picture_cannot_be_encoded(pixels):
    with pytest.raises(ValueError, match="cannot encode an array"):
        encode_png(pixels)
