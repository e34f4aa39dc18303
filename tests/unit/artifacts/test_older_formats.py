"""What files of older formats still say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.artifacts.formats import LearnedFacts, bank_bytes, facts_of_damaged
from backend.artifacts.older_formats import fit_options, older_calibrations
from backend.calib import ScoreRule
from tests.testkit.fakes import bank_on_a_line
from tests.testkit.fakes import fit_options as options
from tests.testkit.older_files import OLD_CHECKSUM, older_calibration, older_memory

BANK = bank_on_a_line({"a" * 64: [1, 2, 3], "b" * 64: [2, 3, 4]}, part_ids={"a" * 64: "one", "b" * 64: "two"})


def facts(version: int, **fitted: object) -> LearnedFacts:
    found = facts_of_damaged(older_memory(BANK, version, **fitted))
    assert found is not None
    return found


def test_a_memory_of_format_1_says_its_rate_seed_and_k_and_the_service_the_rest() -> None:
    otherwise = options(coreset_rate=0.02)
    found = fit_options(facts(1, coreset_rate=0.5, seed=7, k=3).settings, otherwise)
    assert (found.coreset_rate, found.seed, found.k, found.rule) == (0.5, 7, 3, otherwise.rule)


def test_a_memory_of_format_2_says_how_its_maps_become_scores_as_well() -> None:
    fitted = {"k": 3, "mode": "max", "percentile": 98.0, "blur_sigma": 2.5, "area_mm2_thr": 0.7}
    found = fit_options(facts(2, **fitted).settings, options())
    assert (found.coreset_rate, found.seed, found.k) == (0.25, 3, 3)
    assert found.rule == ScoreRule(mode="max", percentile=98.0, blur_sigma=2.5, area_mm2_thr=0.7)


def test_the_first_calibration_of_an_older_memory_takes_the_mode_of_now_unless_one_had_been_chosen() -> None:
    otherwise = replace(options(), first_mode="area")
    assert fit_options(facts(1).settings, otherwise).first_mode == "area"
    assert fit_options(facts(2, mode="percentile").settings, otherwise).first_mode == "area"
    assert fit_options(facts(2, mode="median").settings, otherwise).first_mode == "area"
    assert fit_options(facts(2, mode="top_mean").settings, otherwise).first_mode == "top_mean"


def test_a_damaged_memory_of_now_says_all_of_its_options() -> None:
    rule = ScoreRule(mode="percentile", percentile=97.0, blur_sigma=2.0, area_mm2_thr=0.3)
    fitted = replace(options(), k=2, rule=rule, first_mode="max")
    found = facts_of_damaged(bank_bytes(replace(BANK, options=fitted))[:-100])
    assert found is not None
    assert fit_options(found.settings, options()) == fitted


def test_a_statistic_that_this_version_does_not_know_is_not_taken_over() -> None:
    otherwise = options()
    assert fit_options(facts(2, mode="median", percentile=50.0).settings, otherwise).rule == otherwise.rule


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_memory_names_images_parts_and_scale(version: int) -> None:
    found = facts(version, extractor_id="old")
    assert (found.image_digests, found.placement, found.shape) == (BANK.image_digests, BANK.placement, None)
    assert (found.extractor_id, found.mm_per_px) == ("old", BANK.mm_per_px)


def test_facts_are_found_whatever_their_first_name_is() -> None:
    data = older_memory(BANK, 2)
    assert data.index(b'{"checksum":') < 400
    assert facts_of_damaged(data[: len(data) // 2 + 700]) is not None
    assert facts_of_damaged(data.replace(b'"seed":3', b'"seed":4')) is None


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_calibration_says_its_settings_and_what_it_rests_on(version: int) -> None:
    (found,) = older_calibrations(older_calibration(version, n_ng=2))
    assert (found.score_mode, found.score_percentile, found.area_mm2_thr) == ("top_mean", 97.0, 0.5)
    assert (found.ok_percentile, found.margin, found.ok_scores_from, found.n_ng) == (90.0, 1.25, "stored", 2)
    assert (found.threshold, found.memory_checksum) == (0.4321, OLD_CHECKSUM)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        older_calibration(2).replace(b"0.4321", b"0.4322"),
        older_calibration(2, score_mode="median"),
        older_calibration(2, unknown=1),
    ],
    ids=["empty", "a list", "no fields", "a changed byte", "an unknown statistic", "an unknown field"],
)
def test_what_cannot_be_read_for_certain_is_no_calibration(data: bytes) -> None:
    assert older_calibrations(data) == []


@pytest.mark.parametrize(("n_ng", "ng_scores_from"), [(0, None), (2, "request")])
def test_ng_scores_of_format_3_count_as_sent_for_nobody_knows_their_images(n_ng: int, ng_scores_from: object) -> None:
    (found,) = older_calibrations(older_calibration(3, n_ng=n_ng, ng_caught=n_ng))
    assert (found.ng_scores_from, found.ng_images, found.shape) == (ng_scores_from, (), None)
    assert found.rests_on_sent_scores == bool(n_ng)
