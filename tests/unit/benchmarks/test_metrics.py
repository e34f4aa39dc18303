import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from backend.calib import Bounds
from benchmarks.metrics import (
    Measurement,
    ModeScores,
    PixelScores,
    Run,
    Spread,
    best_of,
    f1_max,
    image_auroc,
    roc_points,
    share_above,
)


def _counted(*pairs: tuple[object, object]) -> PixelScores:
    scores = PixelScores()
    for image_map, mask in pairs:
        scores.add(np.array(image_map, np.float32, ndmin=2), np.array(mask, np.bool_, ndmin=2))
    return scores


def test_image_auroc_counts_pairs_and_a_tie_as_half():
    # Pairs: 1<2, 1<3, 2=2, 2<3.
    assert image_auroc([1, 2], [2, 3]) == pytest.approx(3.5 / 4)


def test_f1_max_is_that_of_the_best_threshold():
    # At 2: both found, one false alarm, precision 2/3. At 4: one found, precision 1.
    assert f1_max([1, 3], [2, 4]) == pytest.approx(0.8)


def test_f1_max_of_scores_that_separate_is_one():
    assert f1_max([1, 2], [3, 4]) == pytest.approx(1.0)


def test_a_score_at_the_threshold_is_not_above_it():
    assert share_above([1.0, 2.0, 3.0, 4.0], 2.0) == 0.5


def test_the_roc_goes_from_nothing_called_defective_to_everything():
    false_alarms, recall = roc_points([1, 2], [2, 3])
    assert (false_alarms[0], recall[0], false_alarms[-1], recall[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_pixel_auroc_is_that_of_scikit_learn_on_the_rounded_maps(seed):
    rng = np.random.default_rng(seed)
    pairs = [(rng.gamma(2, 0.2, (17, 23)).astype(np.float32), rng.random((17, 23)) < 0.1) for _ in range(3)]
    rounded = np.concatenate([image_map.astype(np.float16).astype(np.float64).ravel() for image_map, _ in pairs])
    truth = np.concatenate([mask.ravel() for _, mask in pairs])
    assert _counted(*pairs).auroc() == pytest.approx(roc_auc_score(truth, rounded), abs=1e-12)


def test_rounding_moves_pixel_auroc_by_next_to_nothing():
    rng = np.random.default_rng(0)
    mask = rng.random((200, 200)) < 0.02
    image_map = (rng.normal(0.5, 0.05, (200, 200)) + 0.08 * mask).astype(np.float32)
    exact = roc_auc_score(mask.ravel(), image_map.ravel())
    assert _counted((image_map, mask)).auroc() == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize(
    ("image_map", "mask", "limit", "expected"),
    [
        # The defect above everything normal: full overlap before the first false positive.
        ([1, 2, 3, 9], [0, 0, 0, 1], 0.3, 1.0),
        # Below everything normal: no overlap before the last one.
        ([9, 8, 7, 1], [0, 0, 0, 1], 0.3, 0.0),
        # Overlap 0 up to 1 of 4 false positives, 1 from there: (0.3 - 0.25) / 0.3.
        ([4, 3, 2, 1, 3.5], [0, 0, 0, 0, 1], 0.3, 1 / 6),
        # A tie of half the defect and half the normal pixels is a straight line: overlap x up to x = 0.25, mean 0.125.
        ([5, 1, 5, 0], [0, 0, 1, 1], 0.25, 0.125),
        # One region of 1 px found, one of 3 px missed: the mean over regions is a half, over pixels a quarter.
        ([9, 5, 1, 1, 1], [1, 0, 1, 1, 1], 0.3, 0.5),
    ],
)
def test_aupro_by_hand(image_map, mask, limit, expected):
    assert _counted((image_map, mask)).aupro(limit) == pytest.approx(expected)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_aupro_agrees_with_brute_force(seed, limit):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(4):
        mask = rng.random((9, 11)) < 0.15
        # Few distinct values, so that there are ties; all of them are float16 numbers.
        pairs.append(((rng.integers(0, 12, (9, 11)) + 3 * mask) / 16, mask))
    pairs.append((rng.integers(0, 12, (9, 11)) / 16, np.zeros((9, 11), np.bool_)))
    assert _counted(*pairs).aupro(limit) == pytest.approx(_aupro_by_brute_force(pairs, limit), abs=1e-12)


def test_the_order_of_the_images_does_not_matter():
    rng = np.random.default_rng(1)
    pairs = [(rng.random((8, 8)), rng.random((8, 8)) < 0.2) for _ in range(5)]
    forwards, backwards = _counted(*pairs), _counted(*pairs[::-1])
    assert (forwards.auroc(), forwards.aupro()) == pytest.approx((backwards.auroc(), backwards.aupro()), abs=1e-12)


def test_pixels_that_touch_at_a_corner_are_one_region():
    assert _counted((np.ones((3, 3)), np.eye(3))).n_regions == 1
    assert _counted((np.ones((1, 3)), [[1, 0, 1]])).n_regions == 2


def test_a_negative_zero_is_a_zero():
    assert _counted(([-0.0, 0.0, 1.0], [0, 0, 1])).auroc() == 1.0


def test_without_defects_or_without_normal_pixels_there_is_no_figure():
    nothing, good_only, bad_only = _counted(), _counted(([1, 2], [0, 0])), _counted(([1, 2], [1, 1]))
    for scores in (nothing, good_only, bad_only):
        assert scores.auroc() is None
        assert scores.aupro() is None


@pytest.mark.parametrize(
    ("image_map", "mask"),
    [([1, 2, 3], [0, 1]), ([1, np.nan], [0, 1]), ([1, -1], [0, 1]), ([1, 1e6], [0, 1])],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_map_that_cannot_be_counted_is_refused(image_map, mask):
    with pytest.raises(ValueError, match=r"map"):
        _counted((image_map, mask))


def test_the_limit_of_aupro_must_be_a_share():
    with pytest.raises(ValueError, match="limit"):
        _counted(([1, 2], [0, 1])).aupro(0.0)


def test_the_figures_of_a_mode_by_hand():
    scores = ModeScores(good=(1, 2, 3, 4), defective=(2.5, 5), threshold=3.5, fit_image_threshold=0.5)
    assert scores.figures() == pytest.approx(
        {
            "auroc": 6 / 8,
            "f1_max": 2 / 3,
            "false_alarms": 0.25,
            "recall": 0.5,
            "fit_image_false_alarms": 1.0,
            "fit_image_recall": 1.0,
        }
    )


def test_a_measurement_gives_mean_and_sample_deviation_and_names_the_better_mode():
    measurement = _measurement(_run(0, good=1.0), _run(1, good=3.0))
    spread = measurement.spreads("max")["auroc"]
    assert (spread.mean, spread.deviation) == pytest.approx((0.5, 0.5**0.5))
    assert measurement.spreads("percentile")["auroc"].mean == 1.0
    assert measurement.best_mode == "percentile"
    assert "aupro" not in measurement.spreads("max")
    assert measurement.spreads("max")["pixel_auroc"].mean == 0.75


def test_a_single_run_has_no_deviation_and_the_best_measurement_is_found():
    poor, fair = _measurement(_run(0, good=9.0)), _measurement(_run(0, good=1.0))
    assert fair.spreads("max")["auroc"].deviation is None
    assert best_of([poor, fair]) is poor  # both reach 1.0 with percentile, and the first of equals is taken


def _run(seed: int, good: float) -> Run:
    """Return a run in which ``max`` puts the good image at ``good`` and the defective one at 2."""
    return Run(
        seed=seed,
        fit=("good/a.png", "good/b.png"),
        good=("good/c.png",),
        defective=("hole/d.png",),
        n_seen=0,
        by_mode={
            "max": ModeScores(good=(good,), defective=(2.0,), threshold=1.5, fit_image_threshold=0.5),
            "percentile": ModeScores(good=(1.0,), defective=(2.0,), threshold=1.5, fit_image_threshold=0.5),
        },
        pixel_auroc=0.75,
        aupro=None,
        bounds=Bounds(expected_false_alarm_rate=0.1, false_alarm_rate_upper_95=0.3),
        default_mode="percentile",
        aligned=False,
    )


def _measurement(*runs: Run) -> Measurement:
    return Measurement(
        dataset="four points",
        settings={"input_size": 56, "score_percentile": 99.0},
        extractor_id="none",
        precision="fp32",
        grid_hw=(4, 4),
        image_hw=(8, 8),
        n_resized=0,
        n_masks=1,
        pooled=False,
        runs=runs,
        elapsed_s=0.0,
    )


def test_recall_is_counted_by_kind_of_defect_in_the_order_of_the_folders():
    scores = ModeScores(good=(1.0,), defective=(2.0, 1.0, 1.5, 3.0, 4.0), threshold=1.5, fit_image_threshold=0.5)
    names = ("hole/a.png", "hole/b.png", "hole/c.png", "rust/a.png", "rust/b.png")
    one = replace(_run(0, 1.0), defective=names, by_mode={"max": scores})
    # A score at the threshold is not above it: of the holes one of three is found, of the rust stains both.
    assert one.recall_by_kind("max") == {"hole": pytest.approx(1 / 3), "rust": 1.0}
    other = replace(one, by_mode={"max": replace(scores, defective=(2.0, 2.0, 1.5, 3.0, 1.0))})
    both = _measurement(one, other)
    assert both.n_by_kind == {"hole": 3, "rust": 2}
    recall = both.recall_by_kind("max")
    assert recall["hole"] == Spread(mean=pytest.approx(0.5), deviation=pytest.approx(2**0.5 / 6))
    assert recall["rust"] == Spread(mean=pytest.approx(0.75), deviation=pytest.approx(2**0.5 / 4))


def _aupro_by_brute_force(pairs: list[tuple[NDArray[np.float64], NDArray[np.bool_]]], limit: float) -> float:
    regions = [(image_map, region) for image_map, mask in pairs for region in _regions_by_flood_fill(mask)]
    normal = np.concatenate([image_map[~mask] for image_map, mask in pairs])
    points = [(0.0, 0.0)]
    for threshold in sorted({value for image_map, _ in pairs for value in image_map.ravel()}, reverse=True):
        overlaps = [np.mean([image_map[pixel] >= threshold for pixel in region]) for image_map, region in regions]
        points.append((float((normal >= threshold).mean()), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def _regions_by_flood_fill(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    regions = []
    while left:
        region, front = [], [left.pop()]
        while front:
            row, column = front.pop()
            region.append((row, column))
            near = {(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front.extend(near)
        regions.append(region)
    return regions
