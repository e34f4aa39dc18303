"""The service with an extractor that answers at once: what is left of an inspection is everything but the network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from backend.app import create_app
from backend.extractors.base import FeatureExtractor
from backend.extractors.loader import ExtractorLoader
from backend.imaging.placement import Placement, place
from backend.memory_bank.threads import limit_threads, usable_cpus
from backend.settings import Settings
from backend.wiring import build_service

_ROWS_VARIABLE = "BENCHMARK_ROWS"


class StubExtractor:
    """Answers every image at once with the same rows: see the module.

    Args:
        rows: [Ht*Wt, D] float32, unit rows.
        extractor_id: The id of the extractor that the memory was made with.
        precision: And what that one multiplied in.
        input_size: Edge of that extractor's network input, px.
    """

    name, device, precision, whitens, batch_size = "stub", "cpu", "fp32", False, 1

    def __init__(self, rows: NDArray[np.float32], extractor_id: str, precision: str, input_size: int) -> None:
        self.extractor_id, self.precision = extractor_id, precision
        self._rows, self._input_size = rows, input_size

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return how an image of this size is brought to the patch grid."""
        return place(image_hw, input_size=self._input_size, cell_px=14)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the rows and their grid."""
        return self._rows, self.placement((image_bgr.shape[0], image_bgr.shape[1])).grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the rows for each image."""
        return [self._rows for _ in images_bgr]


def stub_environment(rows: NDArray[np.float32], extractor: FeatureExtractor, path: Path) -> dict[str, str]:
    """Write what the stub answers in an extractor's place; return the variables that ``stubbed_app`` finds it by."""
    np.savez(
        path, rows=rows, extractor_id=np.asarray(extractor.extractor_id), precision=np.asarray(extractor.precision)
    )
    return {_ROWS_VARIABLE: str(path)}


def stubbed_app() -> FastAPI:
    """Return the service with its extractor stubbed out."""
    settings = Settings()
    with np.load(os.environ[_ROWS_VARIABLE], allow_pickle=False) as stored:
        extractor = StubExtractor(
            stored["rows"], str(stored["extractor_id"]), str(stored["precision"]), settings.input_size
        )
    limit_threads(usable_cpus())  # as the service does when it makes its extractor
    return create_app(settings, build_service(settings, extractor=ExtractorLoader(lambda: (extractor, None))))
