"""The facts of a stored image, and their bytes."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from backend.imaging.image_codec import SUFFIX_BY_FORMAT
from backend.utils import sealed_json, sha256_hex, unsealed_json

Label = Literal["ok", "ng"]

FILE_NAME_DIGITS = 12
MAX_STEM_CHARS = 60


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image of the store.

    Attributes:
        digest: Of its decoded pixels.
        name: What its uploader called it, made safe.
        part_id: The physical part that it shows; its digest where nobody said.
        image_hw: Height and width, px.
        mm_per_px: Millimetres per pixel, None where nobody said.
        bytes_sha256: Digest of the file's bytes; empty where the facts are damaged.
        suffix: Of the file, ``.png`` or another of ``SUFFIX_BY_FORMAT``.
        meta: What the client sent along, JSON types.
        is_excluded: Whether a good image is kept, and neither learned nor calibrated with as long as this holds.
        is_of_dataset: Whether it was uploaded to the data set, or nobody knows; False where only fits brought it.
    """

    digest: str
    label: Label
    name: str
    part_id: str
    image_hw: tuple[int, int]
    mm_per_px: float | None
    bytes_sha256: str
    suffix: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    is_of_dataset: bool = True
    is_excluded: bool = False

    @property
    def file_name(self) -> str:
        """What clients see: the uploader's name made safe, then the digest, so that it is unique and stays."""
        return f"{self.name}-{self.digest[:FILE_NAME_DIGITS]}{self.suffix}"

    @property
    def is_damaged(self) -> bool:
        """True when the facts could not be read."""
        return not self.bytes_sha256

    def checked(self, data: bytes) -> bytes:
        """Return the file's bytes; raises ValueError if they are not those that were uploaded."""
        if sha256_hex(data) != self.bytes_sha256:
            raise ValueError("its bytes have changed")
        return data


def safe_stem(name: str) -> str:
    """Return an uploaded file's name without folder and suffix, of letters, digits, ``-`` and ``_`` only."""
    stem = PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")).stem
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)[:MAX_STEM_CHARS].strip("_")
    return kept or "image"


def facts_bytes(image: StoredImage) -> bytes:
    """Return the facts of an image as a JSON object with a digest of itself."""
    return sealed_json(vars(image))


def facts_from_bytes(data: bytes, digest: str, label: Label) -> StoredImage:
    """Return the facts of an image as they were sealed.

    Raises:
        ValueError: If a byte has changed, or they are those of another image.
    """
    fields = unsealed_json(data)
    try:
        height, width = fields.pop("image_hw")
        image = StoredImage(image_hw=(int(height), int(width)), **fields)
    except (TypeError, KeyError) as error:
        raise ValueError("not the facts of an image") from error
    if (image.digest, image.label) != (digest, label):
        raise ValueError("the facts of another image")
    if not _is_usable(image):
        raise ValueError("facts that no upload has left")
    return image


def _is_usable(image: StoredImage) -> bool:
    """Return whether facts can have come from an upload: whoever can seal a file may have put anything into it."""
    scale = image.mm_per_px
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    return (
        all(isinstance(text, str) and text for text in (image.name, image.part_id, image.bytes_sha256))
        and not {"/", "\\"} & {*image.name}
        and min(image.image_hw) > 0
        and (scale is None or (is_number and 0 < scale < math.inf))
        and image.suffix in SUFFIX_BY_FORMAT.values()
        and isinstance(image.meta, Mapping)
        and isinstance(image.is_of_dataset, bool)
    )
