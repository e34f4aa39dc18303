from __future__ import annotations

from dataclasses import replace

import pytest

from backend.calib import SCORE_MODES, ScoreRule
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import leave_one_out_scores
from backend.services.calibration import calibrated
from backend.services.rule_choice import choose_rule, description
from tests.testkit.fakes import bank_on_a_line

P99 = ScoreRule(mode="percentile", percentile=99.0, blur_sigma=0.0, area_mm2_thr=1.0)


def bank(rule: ScoreRule = P99, first_mode: str = "area") -> MemoryBank:
    learned = bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0)}, rule=rule)
    return replace(learned, options=replace(learned.options, first_mode=first_mode))


BANK = bank()


def last(**changes):
    """A calibration of the bank under the rule with these changes."""
    rule = replace(P99, **changes)
    return calibrated(BANK, leave_one_out_scores(BANK, rule), rule=rule)


def chosen(calibration=None, *, brings_scores=False, of=BANK, **asked):
    choice = choose_rule(of, calibration, brings_scores=brings_scores, **asked)
    return choice.rule, choice.warnings


# --- the first calibration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"mode": "area"}),
        ({"area_mm2_thr": 3.0}, {"mode": "area", "area_mm2_thr": 3.0}),
        ({"area_mm2_thr": 0.0}, {"mode": "area", "area_mm2_thr": 0.0}),
        ({"score_percentile": 99}, {}),
        ({"score_percentile": 95}, {"percentile": 95}),
        ({"score_mode": "max"}, {"mode": "max"}),
        ({"score_mode": "percentile"}, {}),
        ({"score_mode": "top_mean", "score_percentile": 98}, {"mode": "top_mean", "percentile": 98}),
    ],
)
def test_a_first_calibration_without_scores_takes_the_area_unless_it_names_another_score(asked, expected):
    assert chosen(**asked) == (replace(P99, **expected), ())


@pytest.mark.parametrize("mode", SCORE_MODES)
def test_a_mode_that_was_set_for_the_service_holds_for_the_first_calibration(mode):
    rule = replace(P99, mode=mode)
    assert chosen(of=bank(rule, first_mode=mode)) == (rule, ())
    found, warnings = chosen(of=bank(rule, first_mode=mode), score_percentile=95)
    assert found.mode == mode
    assert bool(warnings) == (mode in ("max", "area"))


def test_scores_that_a_first_calibration_brings_are_of_the_ordered_percentile():
    assert chosen(brings_scores=True) == (P99, ())
    assert chosen(brings_scores=True, score_percentile=99, score_mode="percentile") == (P99, ())
    rule, (sentence,) = chosen(brings_scores=True, score_mode="area")
    assert rule == P99
    assert sentence.startswith("score_mode=area is not applied: the scores sent were measured as the 99th percentile")


# --- later ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SCORE_MODES)
@pytest.mark.parametrize("brings_scores", [False, True])
def test_a_later_calibration_keeps_what_is_in_force(mode, brings_scores):
    calibration = last(mode=mode, percentile=97, area_mm2_thr=2.5)
    assert chosen(calibration, brings_scores=brings_scores) == (calibration.rule, ())


def test_a_later_calibration_without_scores_takes_what_it_names():
    assert chosen(last(mode="area"), score_mode="percentile", score_percentile=98) == (replace(P99, percentile=98), ())
    assert chosen(last(mode="area"), area_mm2_thr=4.0) == (replace(P99, mode="area", area_mm2_thr=4.0), ())


@pytest.mark.parametrize("mode", ["area", "max"])
@pytest.mark.parametrize("brings_scores", [False, True])
@pytest.mark.parametrize("percentile", [99, 95])
def test_a_percentile_without_an_effect_is_named_and_not_kept(mode, brings_scores, percentile):
    calibration = last(mode=mode)
    rule, (sentence,) = chosen(calibration, brings_scores=brings_scores, score_percentile=percentile)
    assert rule == calibration.rule
    assert sentence.startswith(f"score_percentile={percentile} has no effect")


@pytest.mark.parametrize(
    ("mode", "asked", "named"),
    [
        ("percentile", {"score_mode": "area"}, ["score_mode=area"]),
        ("area", {"score_mode": "percentile"}, ["score_mode=percentile"]),
        ("area", {"area_mm2_thr": 2.0}, ["area_mm2_thr=2"]),
        ("percentile", {"score_percentile": 95.5}, ["score_percentile=95.5"]),
        ("top_mean", {"score_mode": "max", "score_percentile": 95}, ["score_mode=max", "score_percentile=95"]),
        ("area", {"score_mode": "area", "area_mm2_thr": 1.0}, []),
    ],
)
def test_settings_that_contradict_the_scores_sent_are_named_and_not_applied(mode, asked, named):
    calibration = last(mode=mode)
    rule, warnings = chosen(calibration, brings_scores=True, **asked)
    assert rule == calibration.rule
    assert [sentence.split(" is not applied")[0] for sentence in warnings] == named


@pytest.mark.parametrize("mode", ["percentile", "top_mean", "max"])
def test_an_area_that_no_more_than_drops_regions_may_change_with_scores(mode):
    calibration = last(mode=mode)
    rule, warnings = chosen(calibration, brings_scores=True, area_mm2_thr=6.0)
    assert (rule, warnings) == (replace(calibration.rule, area_mm2_thr=6.0), ())


def test_the_blur_is_always_the_memorys():
    soft = bank(replace(P99, blur_sigma=2.0))
    assert chosen(last(mode="max"), of=soft)[0] == replace(P99, mode="max", blur_sigma=2.0)


@pytest.mark.parametrize("mode", SCORE_MODES)
def test_every_mode_has_its_description(mode):
    assert "of the map" in description(replace(P99, mode=mode))
