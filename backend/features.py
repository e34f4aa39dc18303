"""The names that the feature extractor was ordered with; what computes is in `backend.extractors.dinov2`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.extractors.base import FeatureExtractor
from backend.extractors.dinov2 import DinoV2Features

__all__ = ["DinoV2Features", "FeaturesExtractor"]


class FeaturesExtractor:
    """Any extractor behind one call, ``forward``.

    Args:
        extractor: What makes the embeddings; ``DinoV2Features()`` by default.

    Raises:
        WeightsUnavailable: By default, if the weights cannot be had, or PyTorch or timm is not installed.
    """

    def __init__(self, extractor: FeatureExtractor | None = None) -> None:
        self._extractor = DinoV2Features() if extractor is None else extractor

    def forward(self, img: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the patch embeddings of an image and their grid.

        Args:
            img: [H, W, 3] uint8, BGR.

        Returns:
            Embeddings [Ht*Wt, D] float32, row-major; and (Ht, Wt).

        Raises:
            ValueError: If the image has another shape or dtype.
        """
        return self._extractor.extract(img)
