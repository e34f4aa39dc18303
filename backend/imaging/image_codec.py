"""Bytes to BGR pixels and back; the one place where uploads of any form become uint8 BGR.

Pillow reads the header (format and size, before anything is decoded) and OpenCV decodes the pixels: Pillow cannot hold
16-bit colour, and OpenCV neither says the size beforehand nor reports a file that stops half-way.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.errors import BadImage, TooLarge
from backend.utils import sha256_hex

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""What is decoded, and nothing else."""

SUFFIX_BY_FORMAT = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}

MIN_EDGE_PX = 8
"""Below this an image holds no texture that a patch could describe."""

_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"
_MAX_SCANS = 1000
"""A progressive JPEG has about ten, and each costs a pass over the whole image; twenty thousand fit into 200 kB."""


def decode_image(data: bytes, *, max_pixels: int, name: str = "image") -> NDArray[np.uint8]:
    """Return an uploaded image as BGR pixels.

    Grey becomes three equal channels, alpha is dropped, 16-bit values are scaled by 1/257 (the full range, never the
    image's own). EXIF orientation is not applied: a canonical ROI is upright as its pixels lie.

    Args:
        data: The file's bytes.
        max_pixels: Largest width × height that is decoded, px.
        name: What an error calls the image.

    Returns:
        [H, W, 3] uint8, BGR, C-contiguous.

    Raises:
        BadImage: If the bytes are empty, truncated, of another format or pixel type, or smaller than ``MIN_EDGE_PX``.
        TooLarge: If the header announces more than ``max_pixels``; nothing was decoded then.
    """
    image_format, (height, width) = _checked_header(data, max_pixels, name)
    if not _is_whole(data, image_format):
        raise BadImage(f"The image {name!r} is truncated or damaged. Save it again and send it whole.")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise BadImage(f"The image {name!r} cannot be decoded. Save it again as PNG.")
    try:
        return to_bgr_uint8(pixels)
    except ValueError as error:  # a TIFF of floats or of five channels
        raise BadImage(f"The image {name!r} does not hold 8 or 16 bit pixels. Save it again as PNG.") from error


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
    return image_format, (height, width)


def _read_header(data: bytes, name: str) -> tuple[str, tuple[int, int]]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            # Cameras put a second picture behind the first (MPO); the first is an ordinary JPEG.
            return "JPEG" if header.format == "MPO" else str(header.format), header.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"The image {name!r} has too many pixels. Send the ROI, not the whole scene.") from error
    except Exception as error:  # Pillow raises whatever its parsers trip over: IndexError, struct.error, …
        raise BadImage(
            f"The upload {name!r} is not a PNG, JPEG, BMP, TIFF or WebP image. Send the ROI as PNG or JPEG."
        ) from error


def _is_whole(data: bytes, image_format: str) -> bool:
    if image_format == "JPEG":
        # Inside entropy-coded data 0xFF is always followed by 0x00 or a restart marker, so the last end-of-image
        # marker stands behind the last start-of-scan unless the file stops half-way. A thumbnail has its pair earlier.
        is_ended = data.rfind(_END_OF_IMAGE) > data.rfind(_START_OF_SCAN) >= 0
        return is_ended and data.count(_START_OF_SCAN) <= _MAX_SCANS
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image_format == "PNG":
                image.verify()  # walks every chunk and its checksum without decoding
            else:
                image.load()
    except Exception:  # as above: an OverflowError from a tile's size, an IndexError from a PNG without pixels
        return False
    return True
