"""Position maps: what an image shows at each place."""

from __future__ import annotations

import math

import numpy as np
import pytest

from backend.imaging.position_map import CHANNELS, position_map, position_placement

CELLS = 27 * 27


def image_of(grey: np.ndarray) -> np.ndarray:
    """Return grey levels [H, W] as BGR pixels."""
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def tone(grey: float) -> float:
    return 228 * math.log(1 + grey / 100)


@pytest.mark.parametrize("image_hw", [(378, 378), (64, 64), (8, 8), (100, 900), (1243, 500), (9, 3000)])
def test_images_of_any_size_and_aspect_ratio_share_one_grid(image_hw):
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    found = position_map(image)
    assert (found.shape, found.dtype) == ((CELLS, len(CHANNELS)), np.float16)
    assert np.isfinite(found).all()
    assert position_placement(image_hw).grid_hw == (27, 27)


@pytest.mark.parametrize("grey", [0, 17, 128, 255])
def test_a_plain_image_has_its_tone_everywhere_and_no_gradient(grey):
    found = position_map(image_of(np.full((90, 120), grey)))
    assert found[0, 0] == pytest.approx(tone(grey), rel=1e-3)
    assert (found == found[0]).all()
    assert not found[:, 1:4].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_slope_has_its_gradient_along_the_axis_that_it_rises_on(axis):
    # 378 px are brought to 378 px, so one grey level per 3 px it stays; tone rises by 228 / (100 + grey) of that.
    ramp = np.broadcast_to(np.arange(378) // 3 + 60, (378, 378))
    found = position_map(image_of(ramp.T if axis == 0 else ramp)).reshape(27, 27, -1)
    middle = found[13, 13]
    rises, flat = (2, 3) if axis == 1 else (3, 2)
    grey = 60 + (13.5 * 14) / 3
    slope = 228 / (100 + grey) / 3
    assert middle[rises] == pytest.approx(slope, rel=0.03)
    assert middle[flat] == 0
    assert middle[1] == pytest.approx(math.log1p(slope), rel=0.05)
    assert middle[0] == pytest.approx(tone(grey), abs=1)


def test_what_lies_in_one_corner_is_seen_in_that_corner_alone():
    grey = np.full((378, 378), 100)
    grey[:14, -28:-14] = 200
    found = position_map(image_of(grey)).reshape(27, 27, -1).astype(np.float32)
    assert found[0, 25, 0] == pytest.approx(tone(200), abs=0.2)
    assert found[0, 24, 2] > 0 > found[0, 26, 2]
    assert found[1, 25, 3] < 0
    far = np.ones((27, 27), bool)
    far[:2, 24:] = False
    assert (found[far][:, 0] == np.float16(tone(100))).all()
    assert not found[far][:, 1:4].any()


def test_light_moves_the_tone_by_nearly_the_same_everywhere():
    rng = np.random.default_rng(1)
    grey = np.kron(rng.uniform(60, 160, (27, 27)), np.ones((14, 14)))
    moved = position_map(image_of(grey * 1.1)).astype(float) - position_map(image_of(grey)).astype(float)
    assert moved[:, 0].std() < 0.35 * moved[:, 0].mean()


def test_the_same_pixels_give_the_same_bytes():
    image = np.random.default_rng(2).integers(0, 256, (300, 310, 3), dtype=np.uint8)
    assert position_map(image).tobytes() == position_map(image.copy()).tobytes()
