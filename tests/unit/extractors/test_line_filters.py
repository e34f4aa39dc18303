"""Lines are filtered by the convolution theorem: that it is the plain filtering, however a map is cut into tiles."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from backend.extractors.line_filters import LineFilters, bar_kernels


@pytest.mark.parametrize("map_hw", [(192, 192), (4, 4), (1, 1), (120, 304), (300, 7), (65, 64)])
@pytest.mark.parametrize("usual_px", [4, 64, 192, 1024])
def test_the_strongest_responses_are_those_of_plain_filtering(map_hw: tuple[int, int], usual_px: int) -> None:
    tone = np.random.default_rng(0).uniform(0, 290, map_hw).astype(np.float32)
    plain = [cv2.filter2D(tone, cv2.CV_32F, bar, borderType=cv2.BORDER_REFLECT) for bar in bar_kernels(0.7, 5.0, 12)]
    dark, bright = LineFilters(across=0.7, along=5.0, orientations=12, usual_px=usual_px).strongest(tone)
    assert dark.dtype == bright.dtype == np.float32
    np.testing.assert_allclose(dark, np.max(plain, axis=0), atol=5e-4)
    np.testing.assert_allclose(bright, np.min(plain, axis=0), atol=5e-4)


def test_bars_have_zero_sum_and_are_their_own_image_under_a_half_turn() -> None:
    for bar in bar_kernels(1.4, 10.0, 12):
        assert abs(float(bar.sum())) < 1e-5
        np.testing.assert_allclose(bar, bar[::-1, ::-1], atol=1e-7)


def test_a_dark_line_answers_in_the_first_map_and_a_bright_one_in_the_second() -> None:
    filters = LineFilters(across=0.7, along=5.0, orientations=12, usual_px=64)
    dark_line, bright_line = (np.full((64, 64), 128, dtype=np.float32) for _ in range(2))
    dark_line[30, 10:50], bright_line[30, 10:50] = 100, 156
    dark, bright = filters.strongest(dark_line)
    assert dark[30, 30] > 5
    assert dark[30, 30] > -2 * bright[30, 30]
    mirrored_dark, mirrored_bright = filters.strongest(bright_line)
    np.testing.assert_allclose(mirrored_bright, -dark, atol=1e-3)
    np.testing.assert_allclose(mirrored_dark, -bright, atol=1e-3)
