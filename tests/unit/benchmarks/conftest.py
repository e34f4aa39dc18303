from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from backend.demo.samples import render_defective, render_good
from benchmarks.datasets import Dataset, read_dataset

_SIZE_PX = 112


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good parts to learn from, four to test on, four defective ones, two of them with a mask."""
    root = tmp_path_factory.mktemp("sets") / "flanges"
    for seed in range(11):
        part = "train" if seed < 7 else "test"
        _write(root / part / "good" / f"{seed:03d}.png", render_good(seed, size_px=_SIZE_PX, mm_per_px=0.7).image_bgr)
    for index, kind in enumerate(("chipped_edge", "missing_hole", "rust", "missing_hole")):
        sample = render_defective(100 + index, kind, size_px=_SIZE_PX, mm_per_px=0.7)
        _write(root / "test" / kind / f"{index:03d}.png", sample.image_bgr)
        if kind == "missing_hole":
            _write(root / "ground_truth" / kind / f"{index:03d}_mask.png", sample.defect_mask.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return read_dataset(folder)


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, pixels)[1]
    path.write_bytes(encoded.tobytes())
