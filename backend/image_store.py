"""The learned images of a ROI, as uploaded, and their patch embeddings.

    images/<label>/<digest>.png           the original bytes, under the digest of their pixels
    images/<label>/<digest>.json          its name, part, mm_per_px, and the SHA-256 of the bytes
    embeddings/<extractor>/<digest>.npy   the extractor's rows, so that adding 5 images to 50 extracts 5

Embeddings are derived: one that is missing or does not match its digest is extracted again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.errors import ArtefactCorrupt, NotFound
from backend.files import write_atomic
from backend.image_codec import SUFFIX_BY_FORMAT, image_suffix
from backend.utils import canonical_json, sha256_hex

Label = Literal["ok", "ng"]

_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image of the store.

    Attributes:
        digest: Of its decoded pixels.
        label: ``ok`` or ``ng``.
        name: What its uploader called it.
        part_id: The physical part that it shows; its digest where nobody said.
        image_hw: Height and width, px.
        mm_per_px: Millimetres per pixel.
        bytes_sha256: Digest of the file's bytes.
        meta: What the client sent along, JSON types.
    """

    digest: str
    label: Label
    name: str
    part_id: str
    image_hw: tuple[int, int]
    mm_per_px: float
    bytes_sha256: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class ImageStore:
    """The images and embeddings below one ROI's folder."""

    def __init__(self, roi_folder: Path) -> None:
        self._images = roi_folder / "images"
        self._embeddings = roi_folder / "embeddings"

    def put(self, image: StoredImage, data: bytes) -> None:
        """Store an image's original bytes and facts; what is there under the same digest and label is kept.

        Raises:
            OSError: If it cannot be written.
        """
        path = self._images / image.label / (image.digest + image_suffix(data))
        facts = path.with_suffix(".json")
        if not facts.exists():
            write_atomic(path, data)
        # The facts come last: an image counts from the moment that they are there.
        write_atomic(facts, canonical_json(asdict(image)))

    def list(self, label: Label) -> list[StoredImage]:
        """Return the images of a label, by digest."""
        return [_read_facts(path) for path in sorted((self._images / label).glob("*.json"))]

    def get(self, digest: str, label: Label) -> StoredImage | None:
        """Return the facts of an image, or None when it is not stored."""
        path = self._images / label / f"{digest}.json"
        return _read_facts(path) if path.exists() else None

    def read(self, image: StoredImage) -> bytes:
        """Return the original bytes of an image.

        Raises:
            NotFound: If they are gone.
            ArtefactCorrupt: If they are not what was uploaded.
        """
        for suffix in SUFFIX_BY_FORMAT.values():
            path = self._images / image.label / (image.digest + suffix)
            if path.exists():
                data = path.read_bytes()
                if sha256_hex(data) != image.bytes_sha256:
                    raise ArtefactCorrupt(f"The stored image {image.name!r} is damaged. Delete it and upload it again.")
                return data
        raise NotFound(f"The stored image {image.name!r} is gone. Upload it again.")

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

    def put_embeddings(self, digest: str, extractor_id: str, embeddings: NDArray[np.float32]) -> None:
        """Store an extractor's rows [N, D] float32 of an image."""
        buffer = io.BytesIO()
        np.save(buffer, embeddings, allow_pickle=False)
        body = buffer.getvalue()
        write_atomic(self._embeddings_path(digest, extractor_id), body + bytes.fromhex(sha256_hex(body)))

    def get_embeddings(self, digest: str, extractor_id: str) -> NDArray[np.float32] | None:
        """Return an extractor's rows [N, D] of an image, or None when they are missing or damaged."""
        try:
            data = self._embeddings_path(digest, extractor_id).read_bytes()
        except FileNotFoundError:
            return None
        body, footer = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if bytes.fromhex(sha256_hex(body)) != footer:
            return None
        rows: NDArray[np.float32] = np.load(io.BytesIO(body), allow_pickle=False)
        return rows

    def _embeddings_path(self, digest: str, extractor_id: str) -> Path:
        return self._embeddings / sha256_hex(extractor_id.encode())[:16] / f"{digest}.npy"


def _read_facts(path: Path) -> StoredImage:
    try:
        fields = json.loads(path.read_bytes())
        height, width = fields.pop("image_hw")
        return StoredImage(image_hw=(int(height), int(width)), **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactCorrupt("The facts of a stored image are damaged. Upload the image again.") from error
