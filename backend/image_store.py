"""The learned images of a ROI, as uploaded, and their patch embeddings.

    images/<label>/<digest>.png           the original bytes, under the digest of their pixels
    images/<label>/<digest>.json          its name, part, mm_per_px, and the SHA-256 of the bytes
    embeddings/<extractor>/<digest>.npy   the extractor's rows, so that adding 5 images to 50 extracts 5

Embeddings are derived: one that is missing or does not match its digest is extracted again. An image whose facts are
damaged stays listed, as ``damaged-<digest>``: it can be read by nobody, but deleted, and an upload of it mends it.
"""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.errors import ArtefactCorrupt, Conflict, NotFound
from backend.files import write_atomic
from backend.image_codec import SUFFIX_BY_FORMAT
from backend.utils import canonical_json, sha256_hex

Label = Literal["ok", "ng"]

FILE_NAME_DIGITS = 12
MAX_STEM_CHARS = 60
DAMAGED_NAME = "damaged"

_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image of the store.

    Attributes:
        digest: Of its decoded pixels.
        label: ``ok`` or ``ng``.
        name: What its uploader called it, made safe; see ``StoredImage.file_name``.
        part_id: The physical part that it shows; its digest where nobody said.
        image_hw: Height and width, px.
        mm_per_px: Millimetres per pixel, None where nobody said.
        bytes_sha256: Digest of the file's bytes; empty where the facts are damaged.
        suffix: Of the file, ``.png`` or another of ``SUFFIX_BY_FORMAT``.
        meta: What the client sent along, JSON types.
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

    @property
    def file_name(self) -> str:
        """What clients see: the uploader's name made safe, then the digest, so that it is unique and stays."""
        return f"{self.name}-{self.digest[:FILE_NAME_DIGITS]}{self.suffix}"

    @property
    def is_damaged(self) -> bool:
        """True when the facts could not be read."""
        return not self.bytes_sha256


def safe_stem(name: str) -> str:
    """Return an uploaded file's name without folder and suffix, of letters, digits, ``-`` and ``_`` only."""
    stem = PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")).stem
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)[:MAX_STEM_CHARS].strip("_")
    return kept or "image"


class ImageStore:
    """The images and embeddings below one ROI's folder."""

    def __init__(self, roi_folder: Path) -> None:
        self._images = roi_folder / "images"
        self._embeddings = roi_folder / "embeddings"

    def put(self, image: StoredImage, data: bytes) -> StoredImage:
        """Store an image's original bytes and facts, and return the facts.

        What is there under the same digest and label keeps its name and bytes; a part, a scale or metadata that come
        with the repeat take the place of the old ones. What is there but missing or damaged is stored anew.

        Raises:
            OSError: If it cannot be written.
        """
        folder = self._images / image.label
        known = self.get(image.digest, image.label)
        readable = known is not None and self._is_readable(known)
        if not readable:
            write_atomic(folder / (image.digest + image.suffix), data)
        if known is not None and not known.is_damaged:
            image = replace(
                known if readable else image,
                name=known.name,
                part_id=known.part_id if image.part_id == image.digest else image.part_id,
                mm_per_px=image.mm_per_px or known.mm_per_px,
                meta=image.meta or known.meta,
            )
        if image != known:
            # The facts come last: an image counts from the moment that they are there.
            write_atomic(folder / f"{image.digest}.json", canonical_json(vars(image)))
        return image

    def check_label(self, digest: str, label: Label, name: str) -> None:
        """Raise Conflict if an image is stored under the other label: no image is good and bad. Hold the ROI's lock."""
        other: Label = "ng" if label == "ok" else "ok"
        if self.get(digest, other) is not None:
            raise Conflict(
                f"The image {name!r} is stored as {other} already. Delete it there first.",
                details={"label": other, "image": name},
            )

    def labelled(self, label: Label) -> list[StoredImage]:
        """Return the images of a label, by digest."""
        found = (_read_facts(path) for path in sorted((self._images / label).glob("*.json")))
        return [image for image in found if image is not None]

    def get(self, digest: str, label: Label) -> StoredImage | None:
        """Return the facts of an image, or None when it is not stored."""
        return _read_facts(self._images / label / f"{digest}.json")

    def find(self, file_name: str, label: Label) -> StoredImage | None:
        """Return the image that clients know by a file name, or None."""
        stem, _, tail = file_name.rpartition("-")
        digits = PurePosixPath(tail).stem
        if not stem or len(digits) != FILE_NAME_DIGITS or not digits.isalnum():
            return None
        found = (_read_facts(path) for path in (self._images / label).glob(f"{digits}*.json"))
        return next((image for image in found if image is not None and image.file_name == file_name), None)

    def read(self, image: StoredImage) -> bytes:
        """Return the original bytes of an image.

        Raises:
            NotFound: If they are gone.
            ArtefactCorrupt: If they are not what was uploaded.
        """
        try:
            data = (self._images / image.label / (image.digest + image.suffix)).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"The stored image {image.file_name!r} is gone. Upload it again.") from error
        except OSError as error:
            raise ArtefactCorrupt(f"The stored image {image.file_name!r} cannot be read. Upload it again.") from error
        if sha256_hex(data) != image.bytes_sha256:
            raise ArtefactCorrupt(f"The stored image {image.file_name!r} is damaged. Upload it again, or delete it.")
        return data

    def delete(self, digest: str, label: Label) -> bool:
        """Delete an image and its embeddings; return whether it was there."""
        facts = self._images / label / f"{digest}.json"
        was_there = facts.exists()
        facts.unlink(missing_ok=True)
        for path in (self._images / label).glob(f"{digest}.*"):
            path.unlink(missing_ok=True)
        for path in self._embeddings.glob(f"*/{digest}.npy"):
            path.unlink(missing_ok=True)
        return was_there

    def put_embeddings(self, digest: str, made_by: str, embeddings: NDArray[np.float32]) -> None:
        """Store an extractor's rows [N, D] float32 of an image."""
        buffer = io.BytesIO()
        np.save(buffer, embeddings, allow_pickle=False)
        body = buffer.getvalue()
        write_atomic(self._embeddings_path(digest, made_by), body + bytes.fromhex(sha256_hex(body)))

    def get_embeddings(self, digest: str, made_by: str) -> NDArray[np.float32] | None:
        """Return an extractor's rows [N, D] of an image, or None when they are missing or damaged."""
        try:
            data = self._embeddings_path(digest, made_by).read_bytes()
        except FileNotFoundError:
            return None
        body, footer = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if bytes.fromhex(sha256_hex(body)) != footer:
            return None
        rows: NDArray[np.float32] = np.load(io.BytesIO(body), allow_pickle=False)
        return rows

    def _is_readable(self, image: StoredImage) -> bool:
        try:
            self.read(image)
        except (NotFound, ArtefactCorrupt):
            return False
        return True

    def _embeddings_path(self, digest: str, made_by: str) -> Path:
        return self._embeddings / sha256_hex(made_by.encode())[:16] / f"{digest}.npy"


def _read_facts(path: Path) -> StoredImage | None:
    """Return an image's facts: None when they are gone, and what the file names still tell when they are damaged."""
    try:
        fields = json.loads(path.read_bytes())
        height, width = fields.pop("image_hw")
        return StoredImage(image_hw=(int(height), int(width)), **fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return _damaged(path)


def _damaged(facts: Path) -> StoredImage:
    label: Label = "ng" if facts.parent.name == "ng" else "ok"
    suffixes = (suffix for suffix in SUFFIX_BY_FORMAT.values() if facts.with_suffix(suffix).exists())
    return StoredImage(
        digest=facts.stem,
        label=label,
        name=DAMAGED_NAME,
        part_id=facts.stem,
        image_hw=(0, 0),
        mm_per_px=None,
        bytes_sha256="",
        suffix=next(suffixes, ".png"),
    )
