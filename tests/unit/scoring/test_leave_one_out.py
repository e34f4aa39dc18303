import numpy as np
import pytest

from backend.calib import ScoreRule
from backend.roi_mask import Rect, shape_fields, shape_mask
from backend.scoring.leave_one_out import LeaveOneOutScores, learned_mask, leave_one_out_scores
from tests.testkit.fakes import bank_on_a_line, grid_placement

# The distances of test_patchcore: a (0.5, 0.25), b (0.5, 1.75), c (7, 0.25). One pixel per cell, so the map is these.
THREE = {"a": (0.0, 1.0), "b": (0.5, 3.0), "c": (10.0, 1.25)}


def rule(mode="max", percentile=99.0, blur_sigma=0.0, area_mm2_thr=0.04) -> ScoreRule:
    """A pixel of these banks has 0.04 mm²."""
    return ScoreRule(mode=mode, percentile=percentile, blur_sigma=blur_sigma, area_mm2_thr=area_mm2_thr)


@pytest.mark.parametrize(
    ("score_rule", "scores"),
    [
        (rule("max"), (0.5, 1.75, 7.0)),
        (rule("percentile", 50), (0.375, 1.125, 3.625)),
        (rule("percentile", 100), (0.5, 1.75, 7.0)),
        (rule("percentile", 99), (0.4975, 1.7375, 6.9325)),  # 0.99 of the way from the smaller to the larger
        (rule("top_mean", 50), (0.5, 1.75, 7.0)),
        (rule("top_mean", 1), (0.375, 1.125, 3.625)),
        (rule("area"), (0.5, 1.75, 7.0)),
        (rule("area", area_mm2_thr=0.08), (0.25, 0.5, 0.25)),  # both pixels: the smaller
    ],
)
def test_the_scores_of_the_learned_images_by_hand(score_rule, scores):
    found = leave_one_out_scores(bank_on_a_line(THREE), score_rule)
    assert list(found.by_image) == ["a", "b", "c"]
    assert list(found.by_image.values()) == pytest.approx(scores, abs=1e-6)
    assert found.by_part == pytest.approx(scores, abs=1e-6)


def test_more_neighbours_than_one_change_the_scores_as_by_hand():
    found = leave_one_out_scores(bank_on_a_line(THREE, k=2), rule("max"))
    assert list(found.by_image.values()) == pytest.approx([0.875, 1.875, 8.0])


def test_a_part_scores_as_its_worst_image():
    # Whichever of the two comes first. Without each other: (1.25, 0.25) and (0.75, 1.75); c has (7, 0.25).
    for first, second in ("ab", "ba"):
        values = {first: THREE["a"], second: THREE["b"], "c": THREE["c"]}
        found = leave_one_out_scores(bank_on_a_line(values, part_ids={"a": "p", "b": "p"}), rule("max"))
        assert found.by_image == pytest.approx({first: 1.25, second: 1.75, "c": 7.0})
        assert found.by_part == pytest.approx((1.75, 7.0))


def test_an_image_that_owns_all_vectors_is_missing_and_not_zero():
    bank = bank_on_a_line({"a": (0.0, 0.1), "b": (0.05, 5.0)}, coreset_rate=0.25)
    owner = bank.image_digests[int(bank.source[0])]
    found = leave_one_out_scores(bank, rule("max"))
    assert set(found.by_image) == {"a", "b"} - {owner}
    assert len(found.by_part) == 1
    assert found.suggested_threshold() is None


def test_one_part_alone_has_neither_summary_nor_threshold():
    found = leave_one_out_scores(bank_on_a_line(THREE, part_ids=dict.fromkeys(THREE, "p")), rule())
    assert (found.by_image, found.by_part, found.summary(), found.suggested_threshold()) == ({}, (), None, None)


def test_a_summary_agrees_with_numpy():
    scores = {str(i): float(s) for i, s in enumerate(np.random.default_rng(0).random(37))}
    values = list(scores.values())
    assert LeaveOneOutScores(by_image=scores, by_part=tuple(values)).summary() == {
        "n": 37,
        "p50": pytest.approx(np.percentile(values, 50)),
        "p95": pytest.approx(np.percentile(values, 95)),
        "p99": pytest.approx(np.percentile(values, 99)),
        "max": max(values),
    }


def test_the_suggested_threshold_is_the_largest_score_of_a_few_parts():
    assert leave_one_out_scores(bank_on_a_line(THREE), rule("max")).suggested_threshold() == 7.0


def test_what_lies_outside_the_learned_shape_does_not_score():
    left = Rect(x=0, y=0, w=1, h=1)
    bank = bank_on_a_line(THREE, mask_cells=[True, False], shape=shape_fields(left))
    # Only 0, 0.5 and 10 are learned.
    scores = leave_one_out_scores(bank, rule("max")).by_image
    assert scores == pytest.approx({"a": 0.5, "b": 0.5, "c": 9.5})


def test_the_blur_of_the_rule_is_applied_before_the_score():
    values = {name: (0.0,) * 40 + (level,) + (0.0,) * 40 for name, level in (("a", 0.0), ("b", 3.0))}
    bank = bank_on_a_line(values)
    sharp, soft = (leave_one_out_scores(bank, rule("max", blur_sigma=sigma)).by_image["b"] for sigma in (0, 2))
    assert sharp == 3
    assert soft == pytest.approx(3 / (2 * np.sqrt(2 * np.pi)), rel=0.01)  # the peak of a Gaussian of 2 px


def test_the_learned_mask_follows_the_size_of_the_image():
    half = Rect(x=0, y=0, w=20, h=30)
    bank = bank_on_a_line(THREE, placement=grid_placement(1, 2, cell_px=30), shape=shape_fields(half))
    assert learned_mask(bank, (30, 60)).sum() == 600
    np.testing.assert_array_equal(learned_mask(bank, (60, 120)), shape_mask(Rect(x=0, y=0, w=40, h=60), (60, 120)))
    assert learned_mask(bank_on_a_line(THREE), (5, 7)).all()
