"""The data sets that the service keeps for its clients: per ROI, good and bad images with their metadata.

They are the same store that ``/fit_ok`` keeps its images in: an image uploaded as ``ok`` and then fitted is stored
once, and one that is deleted here is not in the next fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import Label, StoredImage, safe_stem
from backend.errors import ArtefactCorrupt, InvalidInput, NotFound
from backend.imaging.image_codec import decode_image, image_suffix, pixel_digest
from backend.services.consistency import PhysicalSize, scale_of_image
from backend.storage import ArtefactStore
from backend.utils import MAX_MM_PER_PX, MIN_MM_PER_PX, sha256_hex

LABELS: tuple[Label, Label] = ("ok", "ng")
READ_OF_META = ("mm_per_px", "part_id", "shape", "shape_json")
"""What is read of an image's metadata; the rest is kept for its client."""


@dataclass(frozen=True, kw_only=True)
class DatasetUpload:
    """One image on its way into a data set, with what its client says of it."""

    name: str
    data: bytes = field(repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict)


class Datasets:
    """The data sets of all ROIs."""

    def __init__(self, store: ArtefactStore, *, max_pixels: int) -> None:
        self._store = store
        self._max_pixels = max_pixels

    def add(self, key: ModelKey, label: Label, uploads: Sequence[DatasetUpload]) -> list[StoredImage]:
        """Store images and return their facts, in the order of the uploads. All are stored, or none.

        Raises:
            BadImage, TooLarge: If an upload cannot be used; the message names it.
            MmPerPxMismatch: If its metadata contradict the ROI's fit.
            InvalidInput: If its metadata are out of range.
            Conflict: If an image is stored under the other label.
            StorageFull, StorageFailed: If one cannot be written.
        """
        stamps = self._store.stamps(key)
        size = self._fitted_size(key)
        described = []
        for upload in uploads:
            image = decode_image(upload.data, max_pixels=self._max_pixels, name=upload.name)
            mm_per_px = _mm_per_px(upload)
            image_hw = (image.shape[0], image.shape[1])
            if size is not None and mm_per_px is not None:
                scale_of_image(size, PhysicalSize(image_hw=image_hw, mm_per_px=mm_per_px), upload.name)
            digest = pixel_digest(image)
            del image  # before the next is decoded: there may be room for one only
            described.append(
                StoredImage(
                    digest=digest,
                    label=label,
                    name=safe_stem(upload.name),
                    part_id=normalize("NFC", str(upload.meta.get("part_id") or digest)),
                    image_hw=image_hw,
                    mm_per_px=mm_per_px,
                    bytes_sha256=sha256_hex(upload.data),
                    suffix=image_suffix(upload.data),
                    meta=dict(upload.meta),
                )
            )
        with self._store.lock(key):
            if self._store.stamps(key) != stamps and (size := self._fitted_size(key)) is not None:
                for stored, upload in zip(described, uploads, strict=True):  # fitted meanwhile
                    if stored.mm_per_px is not None:
                        sent = PhysicalSize(image_hw=stored.image_hw, mm_per_px=stored.mm_per_px)
                        scale_of_image(size, sent, upload.name)
            images = self._store.images(key)
            for stored, upload in zip(described, uploads, strict=True):
                images.check_label(stored.digest, label, upload.name)
            with images.all_or_none():
                return [images.put(stored, upload.data) for stored, upload in zip(described, uploads, strict=True)]

    def _fitted_size(self, key: ModelKey) -> PhysicalSize | None:
        try:
            bank = self._store.load(key).bank
        except ArtefactCorrupt:
            return None  # Images are what a damaged memory is learned from again; that fit compares their scales.
        return None if bank is None else PhysicalSize.of(bank)

    def list(self, key: ModelKey) -> dict[Label, list[StoredImage]]:
        """Return the images of each label, by file name."""
        images = self._store.images(key)
        return {label: sorted(images.labelled(label), key=lambda image: image.file_name) for label in LABELS}

    def get(self, key: ModelKey, label: Label, file_name: str) -> StoredImage:
        """Return the facts of one image.

        Raises:
            NotFound: If there is none of that name.
            ArtefactCorrupt: If its facts are damaged.
        """
        found = self._store.images(key).find(file_name, label)
        if found is None:
            raise NotFound(f"There is no {label} image {file_name[:200]!r} in this data set.")
        if found.is_damaged:
            raise ArtefactCorrupt(f"The stored image {file_name!r} is damaged. Upload it again, or delete it.")
        return found

    def read(self, key: ModelKey, image: StoredImage) -> bytes:
        """Return the original bytes of one image; see ``ImageStore.read``."""
        return self._store.images(key).read(image)

    def pixels(self, key: ModelKey, image: StoredImage) -> NDArray[np.uint8]:
        """Return the pixels [H, W, 3] uint8, BGR, of one image; raises what ``read`` raises."""
        return decode_image(self.read(key, image), max_pixels=self._max_pixels, name=image.file_name)

    def exclude(self, key: ModelKey, file_name: str, *, is_excluded: bool) -> StoredImage:
        """Keep a good image out of the next fit of the data set, or let it in again; return its facts.

        Raises:
            NotFound: If there is none of that name.
            ArtefactCorrupt: If its facts are damaged.
            StorageFull, StorageFailed: If it cannot be kept.
        """
        self.get(key, "ok", file_name)  # and make no folder where there is none
        with self._store.lock(key):
            image = self.get(key, "ok", file_name)
            return self._store.images(key).exclude(image, is_excluded)

    def delete(self, key: ModelKey, label: Label, file_name: str) -> bool:
        """Delete one image; return whether it was there. A memory keeps what it learned until the next fit."""
        if self._store.images(key).find(file_name, label) is None:
            return False  # and make no folder: anyone can name endless ids
        with self._store.lock(key):
            images = self._store.images(key)
            found = images.find(file_name, label)
            return found is not None and images.delete([found.digest], label) == 1

    def clear(self, key: ModelKey, label: Label) -> int:
        """Delete all images of a label; return how many there were."""
        if not self._store.images(key).labelled(label):
            return 0
        with self._store.lock(key):
            images = self._store.images(key)
            return images.delete([image.digest for image in images.labelled(label)], label)


def _mm_per_px(upload: DatasetUpload) -> float | None:
    value = upload.meta.get("mm_per_px")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_MM_PER_PX <= value <= MAX_MM_PER_PX:
        raise InvalidInput(
            f"mm_per_px in the metadata of {upload.name!r} must be a number in {MIN_MM_PER_PX:g} … {MAX_MM_PER_PX:g}.",
            details={"field": "metas.mm_per_px", "ge": MIN_MM_PER_PX, "le": MAX_MM_PER_PX},
        )
    return float(value)
