"""Bytes to BGR pixels and back; the one place where uploads of any form become uint8 BGR.

No library reports all that can be missing, and none is right for every form; some write to standard error. So each
format is checked before it is decoded: whether a JPEG is whole (``jpeg_structure``) or a PNG is (``png_file``). Pillow
decodes what OpenCV would print lines about; TIFF is read by ``tiff_file``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.errors import BadImage, TooLarge
from backend.imaging.jpeg_structure import jpeg_structure
from backend.imaging.pixel_budget import IN_FLIGHT
from backend.imaging.png_file import png_file
from backend.imaging.tiff_file import COLOUR, PALETTE, TIFF_BEGINS, WHITE_IS_ZERO, UnreadTiff, tiff_size, tiff_values
from backend.machine_errors import is_exhaustion
from backend.utils import sha256_hex

_BY_PILLOW = ("PNG", "JPEG", "BMP", "WEBP")

SUFFIX_BY_FORMAT = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}

MIN_EDGE_PX = 8
"""Below this an image holds no texture that a patch could describe."""

MAX_EDGE_PX = 1_000_000

_FULL_BITS: Final = 16


class _Unread(ValueError):
    """Pixels that are not read; says what they are."""


def decode_image(data: bytes, *, max_pixels: int, name: str = "image") -> NDArray[np.uint8]:
    """Return an uploaded image as BGR pixels.

    Grey becomes three equal channels, alpha is dropped, 16-bit values are scaled by the range that the file declares
    (``sBIT`` of PNG, the largest value of TIFF), or else by 1/257; never by what the image itself holds. An orientation
    is not applied, whatever the format: a canonical ROI is upright as its pixels lie.

    Args:
        data: The file's bytes. What follows the picture in them does no harm.
        max_pixels: Largest width × height that is decoded, px.
        name: What an error calls the image.

    Returns:
        [H, W, 3] uint8, BGR, C-contiguous.

    Raises:
        BadImage: If the bytes are empty, damaged, of another format or kind of pixels, or smaller than
            ``MIN_EDGE_PX``, or hold more than one picture. What is missing is never made up.
        TooLarge: If the header announces more than ``max_pixels``; nothing was decoded then.
        OutOfResources: If other images in work leave no room for it in time.
    """
    image_format, (height, width) = _checked_header(data, max_pixels, name)
    n_pixels = height * width
    IN_FLIGHT.take(n_pixels)
    try:
        pixels = _decoded(image_format, data, name)
        if pixels.shape[:2] != (height, width):
            raise BadImage(f"The image {name!r} cannot be decoded. Save it again as PNG.")
    except BaseException:
        IN_FLIGHT.give_back(n_pixels)
        raise
    if pixels.base is not None:
        pixels = pixels.copy()  # parts of it refer to the array that owns the memory: this one
    IN_FLIGHT.count_until_gone(pixels, n_pixels)
    return pixels


def _decoded(image_format: str, data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        return to_bgr_uint8(_READERS[image_format](data))
    except (_Unread, UnreadTiff) as error:
        raise BadImage(f"The image {name!r} cannot be used: {error}. Save it again as PNG.") from error
    except Exception as error:  # Pillow raises whatever its parsers trip over: IndexError, struct.error, …
        if is_exhaustion(error):
            raise
        raise BadImage(f"The image {name!r} is truncated or damaged. Save it again and send it whole.") from error


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels [H, W] or [H, W, 3] (BGR) uint8 as a PNG file.

    Raises:
        ValueError: If the pixels have another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"cannot encode an array of shape {pixels.shape} and dtype {pixels.dtype} as PNG")
    return cv2.imencode(".png", pixels)[1].tobytes()


def to_bgr_uint8(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return decoded pixels of any of the accepted forms as BGR uint8.

    Args:
        pixels: [H, W], [H, W, 1], [H, W, 2] (grey, alpha), [H, W, 3] (BGR) or [H, W, 4] (BGRA), uint8 or uint16.

    Returns:
        [H, W, 3] uint8, C-contiguous.

    Raises:
        ValueError: If the dtype or the number of channels is another.
    """
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 or uint16, got {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"pixels must be [H, W] or [H, W, 1..4], got {pixels.shape}")
    if pixels.shape[2] <= 2:
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3], dtype=np.uint8)


def pixel_digest(image_bgr: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of decoded pixels: the same picture re-encoded without loss has the same digest."""
    height, width = image_bgr.shape[:2]
    return sha256_hex(f"bgr8 {height}x{width}".encode(), np.ascontiguousarray(image_bgr).data.cast("B"))


def image_size(data: bytes, *, max_pixels: int, name: str = "image") -> tuple[int, int]:
    """Return height and width of an uploaded image, px, from its header; arguments and errors as ``decode_image``."""
    return _checked_header(data, max_pixels, name)[1]


def image_suffix(data: bytes) -> str:
    """Return the file suffix that belongs to an image's bytes, whatever its uploader called it."""
    return SUFFIX_BY_FORMAT[_read_header(data, "image")[0]]


def _checked_header(data: bytes, max_pixels: int, name: str) -> tuple[str, tuple[int, int]]:
    """Return the format of an image file and its height and width, px."""
    if not data:
        raise BadImage(f"The upload {name!r} is empty. Send the bytes of a PNG or JPEG file.")
    image_format, (width, height) = _read_header(data, name)
    if width * height > max_pixels:
        raise TooLarge(
            f"The image {name!r} has {width}×{height} px; the limit is {max_pixels} px. "
            "Send the ROI, not the whole scene.",
            details={"width": width, "height": height, "max_pixels": max_pixels},
        )
    if min(width, height) < MIN_EDGE_PX:
        raise BadImage(
            f"The image {name!r} is {width}×{height} px; at least {MIN_EDGE_PX} px a side are needed.",
            details={"width": width, "height": height, "min_edge_px": MIN_EDGE_PX},
        )
    if max(width, height) > MAX_EDGE_PX:
        raise BadImage(f"The image {name!r} is {width}×{height} px: that is a line. Send the ROI.")
    return image_format, (height, width)


def _read_header(data: bytes, name: str) -> tuple[str, tuple[int, int]]:
    """Return the format of an image file, and width and height as its pixels lie in the file, px."""
    try:
        if data.startswith(TIFF_BEGINS):
            return "TIFF", tiff_size(data)
        with Image.open(io.BytesIO(data), formats=_BY_PILLOW) as header:
            # Cameras put a second picture behind the first (MPO); the first is an ordinary JPEG.
            image_format = "JPEG" if header.format == "MPO" else str(header.format)
            return image_format, header.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"The image {name!r} has too many pixels. Send the ROI, not the whole scene.") from error
    except UnreadTiff as error:
        raise BadImage(f"The image {name!r} cannot be used: {error}. Save it again as PNG.") from error
    except Exception as error:  # as above
        if is_exhaustion(error):
            raise
        if data.startswith(TIFF_BEGINS):
            raise BadImage(f"The TIFF {name!r} is truncated or damaged. Save it again and send it whole.") from error
        raise BadImage(
            f"The upload {name!r} is not a PNG, JPEG, BMP, TIFF or WebP image. Send the ROI as PNG or JPEG."
        ) from error


def _read_jpeg(data: bytes) -> NDArray[np.uint8]:
    structure = jpeg_structure(data)
    file = data[: structure.end]
    pixels = _by_pillow(file)
    if not np.array_equal(pixels, _by_pillow(structure.with_bytes_behind_data(file))):
        raise ValueError("data are missing")
    cut = structure.with_blank_end_cut(file)
    if cut is not None and np.array_equal(pixels, _by_pillow(cut)):
        raise ValueError("the end of the data is blank")
    return _to_bgr(pixels)


def _read_png(data: bytes) -> NDArray[np.uint8]:
    png = png_file(data)
    if png.n_frames > 1:
        raise _Unread("it holds more than one picture")
    values = _by_opencv(png.plain)
    if values.dtype == np.uint8:
        return to_bgr_uint8(values)
    colours = (values if values.ndim == 2 else values[:, :, :3]).astype(np.uint16, copy=False)
    # A writer should have scaled its values up to 16 bits (PNG, 11.3.2.7); those of cameras often have not.
    return _eight_bits(colours, png.bits if int(colours.max()) < 1 << png.bits else _FULL_BITS)


def _read_tiff(data: bytes) -> NDArray[np.uint8]:
    tiff = tiff_values(data)
    values = tiff.values
    if tiff.model == PALETTE:
        # Its high bytes: writers make 16 bits of 8 by 256 or by 257.
        return to_bgr_uint8((tiff.palette >> 8).astype(np.uint8)[values[:, :, 0]][:, :, ::-1])
    if tiff.model == WHITE_IS_ZERO:
        values = ((1 << tiff.bits) - 1 - values.astype(np.uint32)).astype(np.uint16)
    return _eight_bits(values[:, :, 2::-1] if tiff.model == COLOUR else values[:, :, :1], tiff.bits)


def _read_bmp(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("BMP",)) as image:
        image.load()  # unlike OpenCV, says so if it stops half-way
    return to_bgr_uint8(_by_opencv(data))


def _read_webp(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise _Unread("it holds more than one picture")
        return _to_bgr(np.asarray(image))


_READERS: Final[dict[str, Callable[[bytes], NDArray[np.uint8]]]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "TIFF": _read_tiff,
    "BMP": _read_bmp,
    "WEBP": _read_webp,
}


def _by_pillow(jpeg: bytes) -> NDArray[np.uint8]:
    """Return the pixels [H, W] or [H, W, 3] (RGB) of a JPEG."""
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def _by_opencv(file: bytes) -> NDArray[np.generic]:
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("not decoded")
    return pixels


def _to_bgr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels [H, W] or, with red first, [H, W, 3 or 4] as BGR."""
    conversion = cv2.COLOR_GRAY2BGR if pixels.ndim == 2 else cv2.COLOR_RGB2BGR
    return np.asarray(cv2.cvtColor(pixels if pixels.ndim == 2 else pixels[:, :, :3], conversion), dtype=np.uint8)


def _eight_bits(values: NDArray[np.uint8] | NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Return values of some bits as BGR pixels [H, W, 3] of 8 bits."""
    if bits == 8:
        return to_bgr_uint8(values.astype(np.uint8))
    full = (1 << bits) - 1
    return to_bgr_uint8(((values.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8))
