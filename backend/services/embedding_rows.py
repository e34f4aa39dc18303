"""The extractor's rows of many images: those that are kept, and those that have to be made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.image_store import ImageStore
from backend.extractors.base import FeatureExtractor, embeddings_key
from backend.extractors.extraction import Extraction
from backend.imaging.image_codec import decode_image
from backend.memory_bank.coreset import Progress


class EmbeddingRows:
    """Rows from the store, or from the device in batches of one size; between batches inspections get their turn."""

    def __init__(self, extraction: Extraction, *, max_pixels: int) -> None:
        self._extraction = extraction
        self._max_pixels = max_pixels

    def of(
        self,
        images: ImageStore,
        sources: Mapping[str, tuple[str, Callable[[], bytes]]],
        extractor: FeatureExtractor,
        progress: Progress | None,
        *,
        keep: bool,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the rows [N, D] of images by digest.

        Args:
            images: Where rows are kept.
            sources: Each image's name and how to read its bytes, by digest.
            extractor: Makes the rows that are missing.
            progress: Told (images done, images in all).
            keep: Store what was extracted, for images that the store holds.
        """
        rows: dict[str, NDArray[np.float32]] = {}
        batch: dict[str, NDArray[np.uint8]] = {}

        def extract() -> None:
            if batch:
                extracted = self._extraction.learn(extractor, list(batch.values()))
                for digest, embeddings in zip(batch, extracted, strict=True):
                    rows[digest] = embeddings
                    if keep:
                        images.put_embeddings(digest, embeddings_key(extractor), embeddings)
                batch.clear()
            if progress is not None:
                progress(len(rows), len(sources))

        for digest, (name, read) in sources.items():
            kept = images.get_embeddings(digest, embeddings_key(extractor))
            if kept is not None:
                rows[digest] = kept
                continue
            image = decode_image(read(), max_pixels=self._max_pixels, name=name)
            if batch and next(iter(batch.values())).shape != image.shape:
                extract()
            batch[digest] = image
            if len(batch) == extractor.batch_size:
                extract()
        extract()
        return rows
