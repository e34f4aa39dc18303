from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from backend.calib import (
    Bounds,
    Calibration,
    Threshold,
    calibrate,
    false_alarm_bounds,
    manual_threshold,
    set_threshold,
)
from backend.errors import InvalidInput, InvalidScores

SCORES = st.lists(st.floats(0, 2), min_size=1, max_size=40)


# -- thresholds by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "percentile", "place"),
    [
        (1, 99, 1),
        (2, 99, 2),
        (20, 99, 20),
        (100, 99, 100),  # 0.99 · 99 = 98.01: the one above it
        (101, 99, 100),  # 0.99 · 100 = 99 exactly
        (201, 99, 199),
        (11, 90, 10),
        (10, 90, 10),
        (5, 50, 3),
        (4, 50, 3),
        (5, 100, 5),
        (5, 0.001, 2),
    ],
)
def test_without_ng_the_threshold_is_an_order_statistic_of_the_ok_scores(n, percentile, place):
    ok = [i / 100 for i in range(1, n + 1)]
    found = set_threshold(ok[::-1], percentile=percentile)
    assert found.threshold == ok[place - 1]
    assert (found.method, found.n_ok, found.n_ng, found.ng_caught) == ("ok_percentile", n, 0, 0)
    assert (found.p5_ng, found.ng_mean) == (None, 0.0)
    assert found.ok_mean == pytest.approx((n + 1) / 200)


@pytest.mark.parametrize(("margin", "threshold"), [(0.5, 0.2), (1.0, 0.4), (1.25, 0.5), (3.0, 1.2)])
def test_a_margin_multiplies_the_percentile(margin, threshold):
    found = set_threshold([0.1, 0.4, 0.2], margin=margin)
    assert found.threshold == pytest.approx(threshold)
    assert (found.margin, found.p99_ok) == (margin, 0.4)


@pytest.mark.parametrize(
    ("ng", "p5_ng", "threshold"),
    [
        ([0.8], 0.8, 0.4 * 2 ** (1 / 4)),  # three OK and one NG: a quarter of the way from 0.4 to twice as much
        ([0.8, 1.0], 0.8, 0.4 * 2 ** (2 / 5)),
        ([1.6, 1.8, 2.0], 1.6, 0.8),  # as many NG as OK: twice the one, half the other
        ([0.5 + i / 100 for i in range(41)], 0.52, 0.4 * 1.3 ** (41 / 44)),  # p5 of 41 is the third smallest
    ],
    ids=["1", "2", "3", "41"],
)
def test_with_ng_above_the_ok_the_threshold_divides_the_way_by_their_numbers(ng, p5_ng, threshold):
    found = set_threshold([0.1, 0.4, 0.2], ng)
    assert found.method == "between_ok_and_ng"
    assert found.p5_ng == pytest.approx(p5_ng)
    assert found.threshold == pytest.approx(threshold)
    assert found.p99_ok < found.threshold < found.p5_ng
    assert found.ng_mean == pytest.approx(sum(ng) / len(ng))
    assert found.ng_caught == sum(score > threshold for score in ng)


def test_ok_scores_of_zero_leave_the_threshold_between_all_the_same():
    assert set_threshold([0.0, 0.0, 0.0], [0.8]).threshold == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("ok", "ng", "threshold", "errors"),
    [
        # One NG inside: let it go (one miss) rather than reject 0.3 and 0.4 (two false alarms). Above all scores.
        ([0.1, 0.2, 0.3, 0.4], [0.25], 0.4, 1),
        # Just below the largest OK: one false alarm or one miss; of the two, the one that catches the defect.
        ([0.1, 0.2, 0.4], [0.3], 0.25, 1),
        # Two NG inside, one outside: rejecting 0.4 alone costs one error and catches all three.
        ([0.1, 0.2, 0.4], [0.3, 0.35, 0.9], 0.25, 1),
        # The NG are the lower ones: nothing separates them; above all but the highest NG is best.
        ([0.5, 0.6, 0.7], [0.1, 0.2, 0.9], 0.8, 2),
        # Equal scores: 0.2 is both; catching it costs the good part of the same score.
        ([0.1, 0.2], [0.2], 0.15, 1),
        # A single pair the wrong way round: threshold below both catches the NG, at one false alarm.
        ([0.4], [0.2], 0.1, 1),
    ],
)
def test_where_ok_and_ng_overlap_a_short_grid_finds_the_fewest_errors(ok, ng, threshold, errors):
    found = set_threshold(ok, ng)
    assert found.method == "fewest_errors"
    assert found.threshold == pytest.approx(threshold)
    assert sum(s > found.threshold for s in ok) + sum(s <= found.threshold for s in ng) == errors
    assert any("NG scores lie below the largest OK score" in warning for warning in found.warnings)


@given(SCORES, SCORES)
def test_no_other_threshold_makes_fewer_errors_in_an_overlap(ok, ng):
    found = set_threshold(ok, ng)
    assume(found.method == "fewest_errors")

    def errors(threshold: float) -> tuple[int, int]:
        misses = sum(score <= threshold for score in ng)
        return sum(score > threshold for score in ok) + misses, misses

    assert errors(found.threshold) == min(errors(other) for other in [*ok, *ng, 0.0, 1e-9, 3.0])


@given(SCORES, st.none() | SCORES, st.floats(1, 100), st.floats(0.5, 3))
def test_a_threshold_is_finite_and_not_negative_and_counts_its_catch(ok, ng, percentile, margin):
    found = set_threshold(ok, ng, percentile=percentile, margin=margin)
    assert 0 <= found.threshold <= 6
    assert found.ng_caught == sum(score > found.threshold for score in ng or [])
    assert (found.n_ok, found.n_ng) == (len(ok), len(ng or []))
    assert (found.method == "ok_percentile") == (not ng)
    assert (found.method == "between_ok_and_ng") == (
        bool(ng) and found.p5_ng > np.percentile(ok, percentile, method="higher")
    )
    assert 0 < found.bounds.expected_false_alarm_rate <= 1
    assert 0 < found.bounds.false_alarm_rate_upper_95 <= 1


def test_an_empty_list_of_ng_scores_is_none():
    assert set_threshold([0.1, 0.2], []) == set_threshold([0.1, 0.2], None)


def test_p99_is_reported_beside_another_percentile():
    found = set_threshold([i / 10 for i in range(1, 11)], percentile=50)
    assert (found.threshold, found.p99_ok) == (0.6, 1.0)


def test_the_function_that_the_order_named_returns_the_threshold():
    assert calibrate([0.1, 0.4, 0.2]) == 0.4
    assert calibrate([0.1, 0.4, 0.2], [0.8]) == pytest.approx(0.4 * 2**0.25)
    assert calibrate([0.1, 0.4, 0.2], None, percentile=50) == 0.2


# -- warnings -----------------------------------------------------------------------------------------------------


def rests_on_largest(found: Threshold) -> bool:
    return any("too few to tell" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("n", "percentile", "warned"),
    [
        (1, 99, True),
        (99, 99, True),
        (100, 99, True),
        (101, 99, False),
        (10, 90, True),
        (11, 90, False),
        (50, 100, False),
    ],
)
def test_a_percentile_that_so_few_parts_cannot_tell_from_the_largest_is_said(n, percentile, warned):
    found = set_threshold([i / n for i in range(n)], percentile=percentile)
    assert rests_on_largest(found) == warned
    assert (found.threshold == (n - 1) / n) == (warned or percentile == 100)


def test_clearly_separated_ng_raise_no_warning_but_the_number_of_parts():
    assert set_threshold([0.1] * 200, [0.9, 1.0]).warnings == ()
    assert len(set_threshold([0.1, 0.2], [0.9]).warnings) == 1


@pytest.mark.parametrize(
    ("ok", "ng", "percentile", "words"),
    [
        ([0.1, 0.2, 0.4], [0.3], 99, ["1 of 1 NG scores lie below"]),
        ([0.1, 0.2, 0.3, 0.4], [0.25], 99, ["1 of 1 NG scores lie below", "1 of 1 NG images stay below the threshold"]),
        # Above the median of the good parts, below their largest: between the two, and yet not told apart.
        ([0.1, 0.2, 0.3, 0.9], [0.5, 0.95], 50, ["1 of 2 NG scores lie below"]),
    ],
)
def test_defects_that_the_scores_do_not_tell_from_good_parts_are_counted(ok, ng, percentile, words):
    warnings = set_threshold(ok, ng, percentile=percentile).warnings
    assert [word for word in words if not any(warning.startswith(word) for warning in warnings)] == []
    assert len(warnings) == len(words)


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf], [0.1, -0.01], [[0.1, 0.2]]])
def test_scores_that_are_none_are_refused_and_the_list_is_named(bad):
    with pytest.raises(InvalidScores, match="ok_scores"):
        set_threshold(bad)
    if bad:
        with pytest.raises(InvalidScores, match="ng_scores"):
            set_threshold([0.1], bad)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"percentile": 0}, "ok_percentile"),
        ({"percentile": 100.1}, "ok_percentile"),
        ({"percentile": math.nan}, "ok_percentile"),
        ({"margin": 0.49}, "margin"),
        ({"margin": 3.01}, "margin"),
        ({"margin": math.nan}, "margin"),
    ],
)
def test_a_setting_out_of_range_is_refused_and_named(settings, field):
    with pytest.raises(InvalidInput) as refused:
        set_threshold([0.1], **settings)
    assert refused.value.details["field"] == field


# -- what a threshold is worth ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "percent"), [(20, 13.9), (30, 9.5), (50, 5.8), (299, 1.0)])
def test_the_largest_of_n_proves_what_the_text_books_say(n, percent):
    bounds = set_threshold([i / n for i in range(n)], percentile=100).bounds
    assert 100 * bounds.false_alarm_rate_upper_95 == pytest.approx(percent, abs=0.05)
    assert bounds.false_alarm_rate_upper_95 == pytest.approx(1 - 0.05 ** (1 / n))
    assert bounds.expected_false_alarm_rate == pytest.approx(1 / (n + 1))


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (5, 5), (5, 1), (50, 49), (100, 90), (300, 298)])
def test_a_bound_is_the_one_of_clopper_and_pearson(n, rank):
    # At a rate as high as the bound, so few of n good parts lie above the threshold only with a chance of 5 %.
    bounds = false_alarm_bounds(n, rank)
    assert binom.cdf(n - rank, n, bounds.false_alarm_rate_upper_95) == pytest.approx(0.05)
    assert bounds.expected_false_alarm_rate == pytest.approx((n - rank + 1) / (n + 1))


@pytest.mark.parametrize("n", [1, 2, 5, 50, 300])
def test_the_bounds_for_a_rank_that_was_chosen_hold_for_all_ranks_at_once(n):
    chances = []
    for rank in range(1, n + 1):
        chosen, fixed = (
            false_alarm_bounds(n, rank, rank_was_chosen=chosen).false_alarm_rate_upper_95 for chosen in (True, False)
        )
        assert chosen >= fixed
        chances.append(binom.cdf(n - rank, n, chosen))
    assert sum(chances) == pytest.approx(0.05)


def test_a_threshold_below_all_ok_scores_promises_nothing():
    assert false_alarm_bounds(10, 0) == Bounds(expected_false_alarm_rate=1.0, false_alarm_rate_upper_95=1.0)
    found = set_threshold([1.0, 1.01, 1.02], margin=0.5)
    assert found.bounds.false_alarm_rate_upper_95 == 1.0


@pytest.mark.parametrize("margin", [1.0, 1.5, 3.0])
def test_a_margin_above_one_does_not_promise_more_than_the_order_statistic_below_it(margin):
    ok = [i / 200 for i in range(200)]
    assert set_threshold(ok, percentile=90, margin=margin).bounds == set_threshold(ok, percentile=90).bounds


class Scores:
    """A distribution of good parts' scores: draws, and the share above a threshold."""

    def __init__(self, draw, share_above):
        self.draw, self.share_above = draw, share_above


def discrete(*chances: float) -> Scores:
    """Scores 1, 2, 3, … with these chances: ties everywhere."""
    upto = np.concatenate([[0], np.cumsum(chances)])
    return Scores(
        lambda rng, n: np.searchsorted(upto[1:-1], rng.random(n), side="right") + 1.0,
        lambda t: 1 - upto[int(np.clip(math.floor(t), 0, len(chances)))],
    )


POPULATIONS = {
    "uniform": Scores(lambda rng, n: rng.random(n), lambda t: 1 - min(max(t, 0), 1)),
    "normal squared": Scores(lambda rng, n: rng.standard_normal(n) ** 2, lambda t: 2 * norm.sf(math.sqrt(max(t, 0)))),
    "lognormal": Scores(lambda rng, n: np.exp(rng.standard_normal(n)), lambda t: norm.sf(math.log(max(t, 1e-300)))),
    "heavy-tailed": Scores(lambda rng, n: 1 / (1 - rng.random(n)), lambda t: 1 / max(t, 1)),
    "ties": discrete(0.5, 0.1, 0.1, 0.1, 0.2),
    "many ties": discrete(0.3, *[0.05] * 14),
}

METHODS = {
    "p99": {},
    "p99 with margin": {"margin": 1.3},
    "p90": {"percentile": 90},
    "median with margin": {"percentile": 50, "margin": 1.2},
    "margin below one": {"margin": 0.6},
    "p90 with margin below one": {"percentile": 90, "margin": 0.8},
    "one NG, far": {"ng_at": (0.999,)},
    "one NG, where the largest OK lie": {"ng_at": (0.95,)},
    "three NG in the upper half": {"ng_at": (0.6, 0.8, 0.97)},
    "three NG, p90": {"ng_at": (0.9, 0.93, 0.99), "percentile": 90},
}


def share_of_broken_promises(scores: Scores, n: int, draws: int, *, ng_at=(), seed=0, **settings) -> float:
    """Return how often the true false-alarm rate of a threshold is above the bound that came with it."""
    rng = np.random.default_rng(seed)
    ng = np.quantile(scores.draw(np.random.default_rng(99), 20_001), ng_at).tolist() if ng_at else None
    broken = 0
    for _ in range(draws):
        found = set_threshold(scores.draw(rng, n), ng, **settings)
        broken += scores.share_above(found.threshold) > found.bounds.false_alarm_rate_upper_95 + 1e-9
    return broken / draws


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("population", POPULATIONS)
def test_the_bound_holds_in_95_of_100_calibrations_whatever_the_scores_are_like(population, method):
    draws = 150
    broken = [
        share_of_broken_promises(POPULATIONS[population], n, draws, seed=n, **METHODS[method]) for n in (5, 12, 30, 100)
    ]
    allowed = 0.05 + 4 * math.sqrt(0.05 * 0.95 / draws)  # one draw is a coin that shows up 5 times in 100
    assert max(broken) <= allowed
    assert np.mean(broken) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / (4 * draws))


@pytest.mark.parametrize(
    ("population", "n", "settings"),
    [
        # Counting the scores that happen to lie at or below a tied threshold would break 8 % of these promises.
        ("many ties", 30, {"percentile": 90}),
        ("ties", 50, {"percentile": 80}),
        # Without paying for the choice of the rank it would be far more.
        ("uniform", 30, {"margin": 0.7}),
        ("uniform", 30, {"ng_at": (0.5, 0.7, 0.9)}),
        ("lognormal", 30, {"ng_at": (0.905,)}),
    ],
)
def test_the_bound_holds_where_it_is_hardest_to_keep(population, n, settings):
    draws = 1500
    broken = share_of_broken_promises(POPULATIONS[population], n, draws, **settings)
    assert broken <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_the_bound_is_not_larger_than_it_need_be():
    # For continuous scores and a rank fixed beforehand it is exact: 5 of 100 promises are broken.
    draws = 1500
    broken = share_of_broken_promises(POPULATIONS["lognormal"], 50, draws)
    assert abs(broken - 0.05) <= 3 * math.sqrt(0.05 * 0.95 / draws)


# -- the stored form ----------------------------------------------------------------------------------------------


def calibration(**changes) -> Calibration:
    fields = {
        "threshold": 0.5,
        "p99_ok": 0.4,
        "p5_ng": 0.6,
        "ok_percentile": 99.0,
        "score_mode": "percentile",
        "score_percentile": 99.0,
        "blur_sigma": 1.0,
        "area_mm2_thr": 1.0,
        "mm_per_px": 0.2,
        "n_ok": 20,
        "n_ng": 2,
        "ng_caught": 2,
        "margin": 1.0,
        "method": "between_ok_and_ng",
        "ok_scores_from": "stored",
        "bounds": false_alarm_bounds(20, 20),
        "ok_mean": 0.3,
        "ng_mean": 0.7,
        "memory_checksum": "ab" * 32,
        "warnings": ("one", "zwölf"),
    }
    return Calibration(**{**fields, **changes})


@pytest.mark.parametrize("changes", [{}, {"p5_ng": None, "n_ng": 0, "ng_mean": 0.0, "warnings": ()}])
def test_a_calibration_reads_back_from_its_json_fields(changes):
    stored = calibration(**changes)
    fields = json.loads(json.dumps(stored.to_fields()))
    assert fields["false_alarm_rate_upper_95"] == stored.bounds.false_alarm_rate_upper_95
    assert "bounds" not in fields
    assert Calibration.from_fields(fields) == stored


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Calibration) if field.name != "bounds"])
def test_a_calibration_that_lacks_a_field_is_refused(name):
    fields = calibration().to_fields()
    del fields[name]
    with pytest.raises((KeyError, TypeError, ValueError)):
        Calibration.from_fields(fields)


@pytest.mark.parametrize(
    "changes", [{"threshold": math.nan}, {"threshold": "much"}, {"score_mode": "mean"}, {"unknown": 1}, {"warnings": 3}]
)
def test_fields_that_are_no_calibration_are_refused(changes):
    with pytest.raises((TypeError, ValueError)):
        Calibration.from_fields({**calibration().to_fields(), **changes})


@pytest.mark.parametrize(
    ("ok", "ng"),
    [
        ([1.0, 2.0, 3.0], []),
        ([1.0, 2.0, 3.0], [9.0]),
        ([1.0, 2.0, 3.0], [3.1]),
        ([1.0, 2.0, 3.0], [2.5, 4.0]),
        ([0.0, 0.0], [1.0]),
    ],
)
def test_a_threshold_never_falls_with_the_margin_and_its_promise_never_grows_worse(ok, ng):
    found = [set_threshold(ok, ng, margin=margin) for margin in np.linspace(0.5, 3.0, 101)]
    thresholds = [each.threshold for each in found]
    assert thresholds == sorted(thresholds)
    if max(ok) > 0:
        assert len(set(thresholds)) == len(thresholds)
    rejected = [each.ok_rejected for each in found]
    assert rejected == sorted(rejected, reverse=True)


def test_a_threshold_set_by_hand_says_what_it_means():
    found = manual_threshold(2.5, [1.0, 2.0, 3.0], [2.0, 9.0])
    assert (found.threshold, found.method, found.margin) == (2.5, "manual", 1.0)
    assert (found.n_ok, found.ok_rejected, found.n_ng, found.ng_caught) == (3, 1, 2, 1)
    assert found.bounds == false_alarm_bounds(3, 2, rank_was_chosen=True)
    assert "1 of 2 NG images stay below" in found.warnings[0]
    alone = manual_threshold(2.5, None)
    assert (alone.n_ok, alone.p99_ok, alone.ok_mean, alone.p5_ng) == (0, 0.0, 0.0, None)
    assert alone.bounds.false_alarm_rate_upper_95 == 1.0


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("inf"), float("nan")])
def test_a_threshold_set_by_hand_is_a_positive_number(threshold):
    with pytest.raises(InvalidInput, match="threshold"):
        manual_threshold(threshold, [1.0])
