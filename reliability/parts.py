"""The images that every proof sends, by number, and the requests that are made of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from backend.artifacts.stored_image import FILE_NAME_DIGITS
from backend.demo.client import Form, fit_form, infer_form, numbered, upload_form
from backend.demo.samples import render_good
from backend.imaging.image_codec import decode_image, encode_png, pixel_digest

ROLE, MM_PER_PX = "Inspection", 0.2
SIZE_PX = 96
PROBE = 9_999
"""The part that is inspected to see what a memory gives; never learned."""


@cache
def png(image: int) -> bytes:
    """Return the file of a part."""
    return encode_png(render_good(image, size_px=SIZE_PX, mm_per_px=MM_PER_PX).image_bgr)


@cache
def digits(image: int) -> str:
    """Return how the service's file name of a part ends: the beginning of the digest of its pixels."""
    return pixel_digest(decode_image(png(image), max_pixels=SIZE_PX**2))[:FILE_NAME_DIGITS]


def numbers(listed: Iterable[str], pool: Iterable[int]) -> frozenset[int]:
    """Return the parts of listed file names.

    Args:
        listed: File names, as the service lists them.
        pool: The parts that there are.

    Raises:
        KeyError: If a file is none of the pool's.
    """
    known = {digits(image): image for image in pool}
    return frozenset(known[file_name.rpartition("-")[2].partition(".")[0]] for file_name in listed)


def roi(roi_id: str) -> dict[str, str]:
    """Return the fields that name a ROI."""
    return {"role_id": ROLE, "roi_id": roi_id}


def fit(roi_id: str, images: Iterable[int], **fields: object) -> Form:
    """Return a request to learn parts."""
    return fit_form(_scaled(roi_id), _files(images), **fields)


def upload(roi_id: str, label: str, images: Iterable[int]) -> Form:
    """Return a request to keep parts in a data set."""
    return upload_form(_scaled(roi_id), label, _files(images))


def infer(roi_id: str, image: int, **fields: object) -> Form:
    """Return a request to inspect a part."""
    return infer_form(_scaled(roi_id), ("0.png", png(image)), **{"heatmap": "none", **fields})


def _scaled(roi_id: str) -> dict[str, object]:
    return {**roi(roi_id), "mm_per_px": MM_PER_PX}


def _files(images: Iterable[int]) -> list[tuple[str, bytes]]:
    return numbered([png(image) for image in images])
