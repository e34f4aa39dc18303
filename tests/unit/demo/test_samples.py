import math

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.demo.part_defects import DEFECT_KINDS
from backend.demo.samples import machined_ring, render_defective, render_good


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    rows, columns = np.nonzero(mask)
    grid_rows, grid_columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    grown = np.zeros_like(mask)
    for row, column in zip(rows, columns, strict=True):
        grown |= (abs(grid_rows - row) <= by) & (abs(grid_columns - column) <= by)
    return grown


def test_a_good_sample_has_the_declared_form_and_an_empty_mask():
    sample = render_good(3, size_px=128, mm_per_px=0.5)
    assert sample.image_bgr.shape == (128, 128, 3)
    assert sample.image_bgr.dtype == np.uint8
    assert sample.defect_mask.shape == (128, 128)
    assert sample.defect_mask.dtype == np.bool_
    assert not sample.defect_mask.any()
    assert sample.defect_size_mm == 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_part():
    first, again, other = render_good(7), render_good(7), render_good(8)
    assert first.image_bgr.tobytes() == again.image_bgr.tobytes()
    assert first.image_bgr.tobytes() != other.image_bgr.tobytes()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_the_same_seed_gives_the_same_defect(kind):
    first, again = (
        render_defective(7, kind, size_px=192, mm_per_px=0.4),
        render_defective(7, kind, size_px=192, mm_per_px=0.4),
    )
    assert first.image_bgr.tobytes() == again.image_bgr.tobytes()
    assert first.defect_mask.tobytes() == again.defect_mask.tobytes()
    assert first == again


@pytest.mark.parametrize("kind", DEFECT_KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_defect_changes_the_pixels_of_its_mask_and_nothing_beyond_the_lens_blur(kind, seed):
    good, bad = render_good(seed), render_defective(seed, kind)
    change = np.abs(good.image_bgr.astype(int) - bad.image_bgr).max(axis=2)
    assert change[bad.defect_mask].mean() > 10
    assert (change[bad.defect_mask] > 3).mean() > 0.6
    assert change[~_grown(bad.defect_mask, 5)].max() == 0


def _area_mm2(sample, mm_per_px=0.2):
    return np.count_nonzero(sample.defect_mask) * mm_per_px**2


@pytest.mark.parametrize("kind", ["pit", "dent", "rust"])
def test_a_blob_has_the_area_of_a_disc_of_its_size(kind):
    sample = render_defective(4, kind)
    assert _area_mm2(sample) == pytest.approx(math.pi / 4 * sample.defect_size_mm**2, rel=0.03)


@pytest.mark.parametrize("kind", ["scratch", "pit", "dent", "rust", "chipped_edge"])
def test_a_scale_multiplies_the_size_and_leaves_the_part_as_it_is(kind):
    usual, small = render_defective(4, kind), render_defective(4, kind, scale=0.5)
    assert small.defect_size_mm == usual.defect_size_mm / 2
    assert small.defect_mask.sum() < 0.7 * usual.defect_mask.sum()
    beyond = ~_grown(usual.defect_mask | small.defect_mask, 5)
    assert (usual.image_bgr[beyond] == small.image_bgr[beyond]).all()


def test_a_missing_hole_of_another_size_is_refused():
    with pytest.raises(ValueError, match="a missing hole has the size of the hole"):
        render_defective(4, "missing_hole", scale=0.5)


def test_a_missing_hole_has_the_area_of_a_bolt_hole():
    sample = render_defective(4, "missing_hole")
    # Radius 0.075 of half of 384 px: 14.4 px of 0.2 mm, so 5.76 mm across and 26.06 mm².
    assert sample.defect_size_mm == pytest.approx(5.76)
    assert _area_mm2(sample) == pytest.approx(26.06, rel=0.03)


def test_a_scratch_is_as_long_as_declared_and_seven_tenths_of_a_millimetre_wide():
    sample = render_defective(5, "scratch")
    rows, columns = np.nonzero(sample.defect_mask)
    extent_mm = math.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1) * 0.2
    assert extent_mm == pytest.approx(sample.defect_size_mm, rel=0.06)
    # A band 0.7 mm wide with round ends.
    assert _area_mm2(sample) == pytest.approx(0.7 * (sample.defect_size_mm - 0.7) + math.pi * 0.35**2, rel=0.1)


def test_a_chip_is_as_wide_as_declared_and_bites_at_most_half_of_that_into_the_rim():
    sample = render_defective(6, "chipped_edge")
    rows, columns = np.nonzero(sample.defect_mask)
    corners = np.stack([rows, columns], axis=1)
    widest_px = max(float(np.hypot(*(corners - corner).T).max()) for corner in corners) + 1
    assert widest_px * 0.2 == pytest.approx(sample.defect_size_mm, rel=0.1)
    assert 0 < _area_mm2(sample) < sample.defect_size_mm**2 / 2


def test_a_size_in_millimetres_means_the_same_at_another_scale():
    fine = render_defective(4, "rust", size_px=384, mm_per_px=0.2)
    coarse = render_defective(4, "rust", size_px=192, mm_per_px=0.4)
    assert fine.defect_size_mm == coarse.defect_size_mm
    assert _area_mm2(fine) == pytest.approx(_area_mm2(coarse, 0.4), rel=0.03)


def test_the_ring_of_384_px_is_where_the_drawing_says():
    ring = machined_ring(384)
    assert (ring.cx, ring.cy) == (191.5, 191.5)
    assert ring.r == pytest.approx(192 * 0.935)
    assert ring.r_inner == pytest.approx(192 * 0.485)


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_every_defect_lies_within_the_ring(kind):
    ring = machined_ring(192)
    for seed in range(8):
        rows, columns = np.nonzero(render_defective(seed, kind, size_px=192, mm_per_px=0.4).defect_mask)
        radius = np.hypot(columns - ring.cx, rows - ring.cy)
        assert radius.max() < ring.r
        assert radius.min() > ring.r_inner


def test_good_parts_differ_by_little_more_than_marks_and_noise():
    images = np.stack([render_good(seed).image_bgr[..., 1] for seed in range(6)]).astype(float)
    means = images.mean(axis=(1, 2))
    assert np.ptp(means) > 0.5  # The light is never quite the same.
    assert np.abs(means - means.mean()).max() < 12
    assert 2 < images.std(axis=0).mean() < 12


@pytest.mark.parametrize("mm_per_px", [-0.2, 0.0, math.nan, math.inf, 0.01, 2.0])
def test_a_scale_at_which_a_defect_cannot_be_drawn_is_refused(mm_per_px):
    with pytest.raises(ValueError, match=r"a pit of 2\.\d mm cannot be drawn at .* mm per pixel"):
        render_defective(1000, "pit", mm_per_px=mm_per_px)
