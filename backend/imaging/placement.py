"""How an image is brought to the patch grid, and the way back.

The *whole* image is resized to the network input, so an image pixel and a grid cell correspond by one scale per axis
and nothing is cropped or padded. Whoever holds a map on the grid asks its placement for the way back; nobody else
guesses geometry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Resize = Literal["aspect", "square"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The correspondence between an image and its patch grid.

    Attributes:
        image_hw: Height and width of the uploaded image, px.
        input_hw: Height and width of the network input, px.
        grid_hw: Rows and columns of the patch grid.
    """

    image_hw: tuple[int, int]
    input_hw: tuple[int, int]
    grid_hw: tuple[int, int]

    def to_image(self, grid_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a map [Ht, Wt] float32 on the grid, brought to image pixels: [H, W] float32.

        Bilinear between cell centres; beyond the outermost centres the edge value holds.
        """
        height, width = self.image_hw
        return cv2.resize(
            np.ascontiguousarray(grid_map, dtype=np.float32), (width, height), interpolation=cv2.INTER_LINEAR
        ).astype(np.float32, copy=False)

    def cell_coverage(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return which part of each grid cell lies inside a mask [H, W] bool: [Ht, Wt] float32 in [0, 1]."""
        rows, columns = self.grid_hw
        # In an image smaller than its grid a cell is a fraction of a pixel, so it takes the pixel's value.
        has_a_pixel_per_cell = self.image_hw[0] >= rows and self.image_hw[1] >= columns
        how = cv2.INTER_AREA if has_a_pixel_per_cell else cv2.INTER_NEAREST
        return cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=how).astype(np.float32, copy=False)

    def cell_mm(self, mm_per_px: float) -> float:
        """Return the longer edge of one grid cell on the part, in millimetres."""
        return mm_per_px * max(self.image_hw[0] / self.grid_hw[0], self.image_hw[1] / self.grid_hw[1])


def place(image_hw: tuple[int, int], *, input_size: int, cell_px: int, resize: Resize = "aspect") -> Placement:
    """Return the placement of an image of a given size.

    A square image gets ``input_size`` rounded down to a multiple of ``cell_px`` (384 → 378 for cells of 14 px). Another
    one keeps its aspect ratio at about the same number of cells, unless ``resize`` is ``square``.

    Args:
        image_hw: Height and width of the image, px; each ≥ 1.
        input_size: Edge of the network input for a square image, px; at least ``cell_px``.
        cell_px: Edge of one patch in the network input, px.
        resize: ``aspect`` or ``square``.

    Raises:
        ValueError: If ``input_size`` is smaller than one cell.
    """
    if input_size < cell_px:
        raise ValueError(f"input_size must be at least {cell_px} px, got {input_size}")
    height, width = image_hw
    cells = input_size // cell_px
    stretch = 1.0 if resize == "square" else math.sqrt(height / width)
    grid_hw = (max(1, round(cells * stretch)), max(1, round(cells / stretch)))
    return Placement(image_hw=image_hw, input_hw=(grid_hw[0] * cell_px, grid_hw[1] * cell_px), grid_hw=grid_hw)


def resized(pixels: NDArray[Any], to_hw: tuple[int, int]) -> NDArray[Any]:
    """Return an image [H, W] or [H, W, 3] at another size, in its dtype."""
    height, width = to_hw
    shrinks = height < pixels.shape[0] or width < pixels.shape[1]
    # Area averaging when shrinking: bilinear would step over hair-thin lines.
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
