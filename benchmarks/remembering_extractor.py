"""An extractor that remembers its answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.extractors.base import FeatureExtractor
from backend.imaging.image_codec import pixel_digest
from backend.imaging.placement import Placement


class RememberingExtractor:
    """An extractor that keeps its answers in a folder, by the digest of the pixels.

    An image's embeddings depend on nothing but the image, so five draws of the shots at four coreset rates need them
    once.
    """

    def __init__(self, wrapped: FeatureExtractor, folder: Path) -> None:
        self._wrapped = wrapped
        self._folder = folder
        self.name = wrapped.name
        self.extractor_id = wrapped.extractor_id
        self.device = wrapped.device
        self.whitens = wrapped.whitens
        self.batch_size = wrapped.batch_size
        self.precision = wrapped.precision
        folder.mkdir(parents=True, exist_ok=True)

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return the wrapped extractor's placement."""
        return self._wrapped.placement(image_hw)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the wrapped extractor's answer."""
        return self.extract_batch([image_bgr])[0], self.placement((image_bgr.shape[0], image_bgr.shape[1])).grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the wrapped extractor's answers; it is asked for the images that are new, in one batch."""
        paths = [self._folder / f"{pixel_digest(image)}.npy" for image in images_bgr]
        new = [(path, image) for path, image in zip(paths, images_bgr, strict=True) if not path.exists()]
        if new:
            found = self._wrapped.extract_batch([image for _, image in new])
            for (path, _), rows in zip(new, found, strict=True):
                np.save(path, rows, allow_pickle=False)
        return [np.load(path, allow_pickle=False) for path in paths]
