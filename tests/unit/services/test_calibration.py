from __future__ import annotations

from dataclasses import replace

import pytest

from backend.calib import ScoreRule, set_threshold
from backend.errors import InvalidInput, InvalidScores
from backend.memory_bank.bank import MemoryBank
from backend.scoring.inspection import rule_in_force
from backend.scoring.leave_one_out import leave_one_out_scores
from backend.services.calibration import calibrated as calibrated_with
from backend.services.calibration import renewed as renewed_with
from tests.testkit.fakes import bank_on_a_line

MAX = ScoreRule(mode="max", percentile=99.0, blur_sigma=0.0, area_mm2_thr=1.0)

# Leave-one-image-out scores by maximum: a 0.5, b 1.75, c 7 (see test_patchcore).
BANK = bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0), "c": (10.0, 1.25)})


def bank_with_scores_near_one(n: int) -> MemoryBank:
    """Images of one cell at 0, 1, 2, …: each is 1 away from its neighbour."""
    return bank_on_a_line({f"{i:03}": (float(i),) for i in range(n)})


def calibrated(bank, **changes):
    asked = {"rule": MAX, **changes}
    return calibrated_with(bank, leave_one_out_scores(bank, asked["rule"]), **asked)


def renewed(previous, bank):
    return renewed_with(previous, bank, leave_one_out_scores(bank, rule_in_force(bank, previous)))


def test_without_scores_in_the_request_the_memorys_own_are_taken():
    calibration = calibrated(BANK)
    assert calibration.threshold == 7.0
    assert calibration.ok_mean == pytest.approx((0.5 + 1.75 + 7) / 3)
    assert (calibration.n_ok, calibration.ok_scores_from) == (3, "stored")
    assert calibration.memory_checksum == BANK.checksum
    assert (calibration.mm_per_px, calibration.area_mm2_thr) == (0.2, 1.0)
    assert (calibration.score_mode, calibration.score_percentile) == ("max", 99.0)


def test_parts_and_not_images_are_counted():
    bank = bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0), "c": (10.0, 1.25)}, part_ids={"a": "p", "b": "p"})
    calibration = calibrated(bank)
    assert (calibration.n_ok, calibration.ok_mean) == (2, pytest.approx((1.75 + 7) / 2))


def test_scores_in_the_request_go_before_the_memorys_own():
    calibration = calibrated(BANK, ok_scores=[3.0, 2.0, 4.0], ng_scores=[64.0], rule=replace(MAX, area_mm2_thr=2.5))
    assert (calibration.threshold, calibration.method) == (8.0, "between_ok_and_ng")
    assert (calibration.ok_scores_from, calibration.n_ok, calibration.n_ng) == ("request", 3, 1)
    assert calibration.area_mm2_thr == 2.5
    assert calibrated(BANK, ok_scores=[3.0], scores_from="dataset").ok_scores_from == "dataset"


def test_the_settings_of_the_request_decide_and_are_kept():
    calibration = calibrated(BANK, ok_percentile=50, margin=1.5)
    assert calibration.threshold == pytest.approx(1.75 * 1.5)
    assert (calibration.ok_percentile, calibration.margin) == (50, 1.5)
    assert calibration.bounds == set_threshold([0.5, 1.75, 7], percentile=50, margin=1.5).bounds


@pytest.mark.parametrize(
    ("n_images", "min_parts", "enough"), [(1, 2, False), (2, 2, True), (4, 5, False), (5, 5, True)]
)
def test_stored_scores_need_enough_parts(n_images, min_parts, enough):
    bank = bank_with_scores_near_one(n_images)
    if enough:
        assert calibrated(bank, min_parts=min_parts).n_ok == n_images
    else:
        with pytest.raises(InvalidInput, match="ok_scores") as refused:
            calibrated(bank, min_parts=min_parts)
        assert refused.value.details["field"] == "ok_scores"


def test_one_score_in_the_request_is_enough_for_any_memory():
    assert calibrated(bank_with_scores_near_one(1), ok_scores=[0.3]).threshold == 0.3


def test_empty_or_negative_scores_are_refused():
    for changes in ({"ok_scores": []}, {"ok_scores": [-1.0]}, {"ng_scores": [float("nan")]}):
        with pytest.raises(InvalidScores):
            calibrated(BANK, **changes)


def has(calibration, words: str) -> bool:
    return any(words in warning for warning in calibration.warnings)


@pytest.mark.parametrize(
    ("ok_scores", "warned"),
    [
        ([0.0] * 20, True),  # what a memory gives its own images
        ([0.1, 0.2, 0.05, 0.3], True),
        ([0.49] * 5, True),  # below half of what the stored ones are
        ([0.9, 1.1, 1.0, 1.2], False),
        ([1.0] * 5, False),
        ([5.0, 6.0], False),
    ],
)
def test_scores_that_look_like_those_of_fit_images_are_remarked_on(ok_scores, warned):
    calibration = calibrated(bank_with_scores_near_one(10), ok_scores=ok_scores)
    assert has(calibration, "look like scores of images that the memory was fitted on") == warned


def test_a_memory_without_scores_of_its_own_has_nothing_to_compare_with():
    assert not has(calibrated(bank_with_scores_near_one(1), ok_scores=[0.0]), "look like")


def test_what_is_known_of_the_call_already_stands_before_what_the_scores_tell():
    calibration = calibrated(BANK, ok_scores=[3.0], ng_scores=[2.0], warnings=("The call was odd.",))
    assert calibration.warnings[0] == "The call was odd."
    assert has(calibration, "does not tell these defects")


def test_the_stored_scores_are_measured_by_the_rule_asked_for():
    half = ScoreRule(mode="percentile", percentile=50.0, blur_sigma=0.0, area_mm2_thr=1.0)
    assert calibrated(BANK, rule=half).threshold == pytest.approx(3.625)


def test_a_renewed_calibration_has_the_new_memorys_scores_and_the_old_settings():
    previous = calibrated(BANK, ok_percentile=50, margin=1.5, rule=replace(MAX, area_mm2_thr=3.0))
    bank = bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0), "c": (10.0, 1.25), "d": (9.0, 9.0)})
    new = renewed(previous, bank)
    # d is 1 from 10; c is 1 from 9 and 0.25 from 1; so a 0.5, b 1.75, c 1, d 1: the upper median is 1.
    assert new.threshold == pytest.approx(1.5)
    assert (new.ok_percentile, new.margin, new.area_mm2_thr, new.score_mode) == (50, 1.5, 3.0, "max")
    assert (new.n_ok, new.memory_checksum, new.ok_scores_from) == (4, bank.checksum, "stored")


def test_a_calibration_that_rests_on_ng_scores_cannot_be_renewed():
    previous = calibrated(BANK, ng_scores=[9.0])
    assert renewed(previous, bank_with_scores_near_one(5)) is None


def test_a_memory_of_one_part_cannot_renew_a_calibration():
    assert renewed(calibrated(BANK), bank_with_scores_near_one(1)) is None


def test_a_calibration_that_rests_on_sent_scores_is_renewed_from_the_stored_ones():
    previous = calibrated(BANK, ok_scores=[3.0])
    assert renewed(previous, bank_with_scores_near_one(5)).ok_scores_from == "stored"


def test_the_rule_in_force_is_the_last_calibrations_blurred_as_the_memory_says():
    soft = ScoreRule(mode="max", percentile=99.0, blur_sigma=2.0, area_mm2_thr=1.0)
    bank = bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0)}, rule=soft)
    assert rule_in_force(bank, None) == soft
    rule = ScoreRule(mode="top_mean", percentile=98.0, blur_sigma=0.0, area_mm2_thr=1.0)
    last = calibrated(BANK, rule=rule)
    assert last.rule == rule
    assert rule_in_force(bank, last) == ScoreRule(mode="top_mean", percentile=98.0, blur_sigma=2.0, area_mm2_thr=1.0)
