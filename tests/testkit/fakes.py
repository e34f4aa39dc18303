"""Stand-ins that obey the protocols of the real parts, small enough to compute by hand."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.calib import ScoreRule
from backend.demo.demo_parts import Part
from backend.demo.inspected import Inspected
from backend.imaging.image_codec import pixel_digest
from backend.imaging.placement import Placement, place
from backend.memory_bank.bank import FitOptions, MemoryBank, PatchGrid
from backend.memory_bank.learning import learn

PLATE_PX = 96


class FakeExtractor:
    """The mean colour of each cell beside a constant: unit rows, or the bare colours where a ROI's whitening follows.

    ``calls`` holds the pixel digest of every image that was extracted, in order.
    """

    name = "fake"
    device = "cpu"

    def __init__(
        self, *, input_size: int = 64, cell_px: int = 8, whitens: bool = False, variant: str = "a", batch_size: int = 1
    ) -> None:
        self.whitens = whitens
        self.batch_size = batch_size
        self.precision = "fp32"
        self.extractor_id = f"fake-{variant}|{input_size}/{cell_px}|whitens={whitens}"
        self.calls: list[str] = []
        self._input_size, self._cell_px = input_size, cell_px

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        return place(image_hw, input_size=self._input_size, cell_px=self._cell_px)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        self.calls.append(pixel_digest(image_bgr))
        grid_hw = self.placement((image_bgr.shape[0], image_bgr.shape[1])).grid_hw
        means = cv2.resize(image_bgr.astype(np.float32), grid_hw[::-1], interpolation=cv2.INTER_AREA).reshape(-1, 3)
        if self.whitens:
            return means, grid_hw
        rows = np.hstack([means / np.float32(255), np.ones((len(means), 1), np.float32)])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return [self.extract(image)[0] for image in images_bgr]


def good_image(seed: int, *, image_hw: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    """Return a soft grey pattern with a little noise from the seed, [H, W, 3] BGR with three equal channels."""
    height, width = image_hw
    rng = np.random.default_rng(seed)
    wave = 110 + 40 * np.sin(np.arange(width) / 9)[None, :] + 30 * np.cos(np.arange(height) / 7)[:, None]
    grey = np.clip(wave + rng.normal(0, 6, image_hw), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def unaligned_image(seed: int, *, image_hw: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    """Return a soft grey texture whose spots lie elsewhere for each seed, [H, W, 3] BGR with three equal channels."""
    field = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(image_hw), (0, 0), 3)
    grey = (110 + 60 * field / np.abs(field).max()).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def defective_image(seed: int, *, image_hw: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    """Return a good image with a white patch of a quarter of each edge in its middle."""
    image = good_image(seed, image_hw=image_hw)
    height, width = image_hw
    image[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = 255
    return image


def plate(seed: int, hw: tuple[int, int] = (PLATE_PX, PLATE_PX)) -> NDArray[np.uint8]:
    """Return a good plate: the same brushed pattern on every one, and a grain that is its own. [H, W, 3] uint8."""
    height, width = hw
    rows, columns = np.mgrid[:height, :width]
    pattern = 120 + 25 * np.sin(columns / width * 9.0) + 15 * np.cos(rows / height * 7.0)
    grain = np.random.default_rng([seed, height, width]).standard_normal(hw)
    grain = cv2.GaussianBlur(grain, (0, 0), 1.0) * 12
    return np.repeat(np.clip(pattern + grain, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def with_defect(image: NDArray[np.uint8], xywh: tuple[int, int, int, int], strength: int = 30) -> NDArray[np.uint8]:
    """Return the image with a fine chequer in the box x, y, w, h: grey levels up and down by ``strength``.

    Its mean is that of the plate, so that only filters that look at the box itself answer to it.
    """
    x, y, w, h = xywh
    defective = image.astype(np.int16)
    ys, xs = np.mgrid[y : y + h, x : x + w]
    defective[y : y + h, x : x + w] += np.where((ys // 3 + xs // 3) % 2, strength, -strength)[:, :, None].astype(
        np.int16
    )
    return np.clip(defective, 0, 255).astype(np.uint8)


def encoded(image_bgr: NDArray[np.uint8], file_format: str = "PNG", **options: Any) -> bytes:
    """Return BGR or grey pixels as a file of a format, written by Pillow."""
    rgb = image_bgr if image_bgr.ndim == 2 else image_bgr[:, :, ::-1]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, file_format, **options)
    return buffer.getvalue()


def plates(seeds: Sequence[int], hw: tuple[int, int] = (PLATE_PX, PLATE_PX)) -> list[bytes]:
    """Return good plates as PNG files."""
    return [cv2.imencode(".png", plate(seed, hw))[1].tobytes() for seed in seeds]


def grid_placement(rows: int, columns: int, *, cell_px: int = 1) -> Placement:
    """Return a placement whose cells are ``cell_px`` image pixels wide; 1 makes map and grid the same thing."""
    return Placement(
        image_hw=(rows * cell_px, columns * cell_px),
        input_hw=(rows * cell_px, columns * cell_px),
        grid_hw=(rows, columns),
    )


def fit_options(**changed: Any) -> FitOptions:
    """Return options that leave small examples as they are: every vector kept, no blur, the map's 99th percentile."""
    rule = ScoreRule(mode="percentile", percentile=99.0, blur_sigma=0.0, area_mm2_thr=1.0)
    values: dict[str, Any] = {
        "coreset_rate": 1.0,
        "seed": 0,
        "k": 1,
        "rule": rule,
        "first_mode": "area",
        "aligned": "auto",
    }
    return FitOptions(**{**values, **changed})


def bank_on_a_line(
    values: Mapping[str, Sequence[float]],
    *,
    part_ids: Mapping[str, str] | None = None,
    coreset_rate: float = 1.0,
    seed: int = 0,
    k: int = 1,
    rule: ScoreRule | None = None,
    mask_cells: Sequence[bool] | None = None,
    placement: Placement | None = None,
    **others: Any,
) -> MemoryBank:
    """Return a memory whose "embeddings" are numbers on a line, so that every distance is a difference.

    Args:
        values: One number per cell of a 1 × n grid, by image digest.
        part_ids: As ``learn``.
        coreset_rate: As in ``FitOptions``.
        seed: As in ``FitOptions``.
        k: As in ``FitOptions``.
        rule: As in ``FitOptions``.
        mask_cells: The learned cells; all by default.
        placement: The grid; one pixel per cell by default.
        others: More arguments of ``learn``.
    """
    cells = len(next(iter(values.values())))
    placement = placement or grid_placement(1, cells)
    grids = {
        digest: PatchGrid(
            embeddings=np.asarray(row, np.float32)[:, None], placement=placement, extractor_id="numbers on a line"
        )
        for digest, row in values.items()
    }
    arguments: dict[str, Any] = {"shape": None, "whitening": None, "mm_per_px": 0.2, **others}
    return learn(
        grids,
        part_ids=part_ids or {},
        position_maps={digest: np.zeros((1, 4), np.float16) for digest in values},
        mask_cells=np.ones(cells, bool) if mask_cells is None else np.asarray(mask_cells),
        options=fit_options(coreset_rate=coreset_rate, seed=seed, k=k, **({} if rule is None else {"rule": rule})),
        **arguments,
    )


def inspected(**changes: Any) -> Inspected:
    """Return a good part of 20 × 30 px that passed, but for what is to differ in ``Part`` or ``Inspected``."""
    of_part: dict[str, Any] = {"name": "part", "is_defective": False, "image_bgr": np.full((20, 30, 3), 120, np.uint8)}
    of_part |= {name: changes.pop(name) for name in (*of_part, "inspected_mask", "defect_mask") if name in changes}
    values: dict[str, Any] = {
        "heatmap": np.zeros((20, 30), np.uint8),
        "score": 0.4,
        "threshold": 0.5,
        "decision": "ok",
        "regions": (),
        "elapsed_ms": 10.0,
    }
    return Inspected(part=Part(**of_part), **{**values, **changes})
