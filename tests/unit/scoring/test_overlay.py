from __future__ import annotations

import numpy as np
import pytest

from backend.roi_mask import Circle, shape_mask
from backend.scoring.overlay import overlay
from backend.scoring.regions import find_regions


def drawn(edge: int, spot: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return overlay, hot pixels and mask of a grey disc with a square spot x, y, edge."""
    x, y, size = spot
    image_map = np.full((edge, edge), 0.3, np.float32)
    image_map[y : y + size, x : x + size] = 1.0
    mask = shape_mask(Circle(cx=edge / 2, cy=edge / 2, r=0.48 * edge), (edge, edge))
    regions = find_regions(image_map, mask, threshold=0.5, area_mm2_thr=0, mm_per_px=1.0)
    heat = np.clip(image_map * 256, 0, 255).astype(np.uint8) * mask
    image = np.full((edge, edge, 3), 150, np.uint8)
    return overlay(image, heat, mask, regions), image_map >= 0.5, mask


@pytest.mark.parametrize("edge", [384, 3000])
def test_a_region_is_outlined_and_glows_and_the_rest_stays_grey(edge: int) -> None:
    size = edge // 8
    picture, hot, mask = drawn(edge, (edge // 3, edge // 2, size))
    centre = picture[edge // 2 + size // 2, edge // 3 + size // 2].astype(int)
    assert centre[2] > centre[0] + 60, "it glows yellow"
    coloured = np.ptp(picture.astype(int), axis=2) > 20
    lines = max(1, round(edge / 400)) * 3
    far = np.zeros_like(hot)
    far[edge // 2 - lines : edge // 2 + size + lines, edge // 3 - lines : edge // 3 + size + lines] = True
    assert not coloured[~far].any()
    assert (picture[~mask & ~far] == 60).all(), "what was not inspected is dark"
    assert (picture[mask & ~far] == 150).all()


@pytest.mark.parametrize("edge", [384, 3000])
def test_a_region_of_a_pixel_has_a_frame_that_is_seen_when_the_picture_is_shown_small(edge: int) -> None:
    picture, _, _ = drawn(edge, (edge // 2, edge // 2, 1))
    coloured = np.argwhere(np.ptp(picture.astype(int), axis=2) > 100)
    assert np.ptp(coloured, axis=0).min() >= edge / 80
