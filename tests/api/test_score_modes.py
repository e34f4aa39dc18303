"""Which statistic of the map is a ROI's score over its calibrations, and that scores of one never meet another's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testkit.app import Api, answer_of, running_app
from tests.testkit.fakes import encoded, plate, plates, with_defect

N_OK = 6
DEFECTIVE = encoded(with_defect(plate(20), (24, 36, 24, 24)))


@pytest.fixture(scope="module")
def fitted_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a ROI that has learned six plates under the default settings."""
    models = tmp_path_factory.mktemp("modes") / "models"
    with running_app(models, image_check="off") as api:
        answer_of(api.fit(plates(range(N_OK))))
    return models


@pytest.fixture
def api(fitted_models: Path, tmp_path: Path) -> Iterator[Api]:
    shutil.copytree(fitted_models, tmp_path / "models")
    with running_app(tmp_path / "models", image_check="off") as started:
        yield started


def scores_of(api: Api, images: list[bytes]) -> list[float]:
    return [answer_of(api.infer(image, heatmap="none"))["score"] for image in images]


def about(calibrated: dict[str, Any]) -> tuple[Any, ...]:
    return calibrated["score_mode"], calibrated["score_percentile"], calibrated["area_mm2_thr"]


def named(calibrated: dict[str, Any]) -> list[str]:
    """The settings that were not applied or had no effect."""
    words = ("is not applied", "has no effect")
    return [text.split("=")[0] for text in calibrated["warnings"] if any(word in text for word in words)]


def test_the_published_client_gets_the_ordered_percentile(api: Api) -> None:
    """Fit, inspect without a calibration, send those scores with ``score_percentile`` 99."""
    images = plates(range(30, 36))
    raw = [answer_of(api.infer(image)) for image in images]
    assert {(found["params"]["score_mode"], found["decision"]) for found in raw} == {("percentile", None)}
    scores = [found["score"] for found in raw]
    assert scores == [found["params"]["scores"]["percentile"] for found in raw]
    calibrated = answer_of(api.calibrate(ok_scores=scores, ng_scores=None, score_percentile=99, area_mm2_thr=1.0))
    assert about(calibrated) == ("percentile", 99, 1.0)
    assert calibrated["threshold"] == max(scores)
    assert named(calibrated) == []
    assert scores_of(api, images) == scores
    # Later ones, as the same client sends them, keep it.
    assert about(answer_of(api.calibrate(score_percentile=99))) == ("percentile", 99, 1.0)


def test_a_first_calibration_of_its_own_takes_the_area_and_later_ones_keep_it(api: Api) -> None:
    assert answer_of(api.infer(DEFECTIVE))["params"]["score_mode"] == "percentile"
    first = answer_of(api.calibrate())
    assert (about(first), named(first)) == (("area", 99, 1.0), [])
    assert first["threshold"] == pytest.approx(max(scores_of(api, plates(range(N_OK)))), rel=1e-6)
    again = answer_of(api.calibrate(score_percentile=99))
    assert (about(again), named(again)) == (("area", 99, 1.0), ["score_percentile"])
    assert again["threshold"] == first["threshold"]
    fitted = answer_of(api.fit(plates([30])))
    assert fitted["calibration"] == "renewed"
    found = answer_of(api.infer(DEFECTIVE))
    assert (found["params"]["score_mode"], found["threshold"]) == ("area", fitted["threshold"])
    assert (found["decision"], found["score"]) == ("ng", found["params"]["scores"]["area"])


def test_an_explicit_setting_holds_before_and_after_the_first_calibration(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", score_mode="top_mean") as api:
        answer_of(api.fit(plates(range(N_OK))))
        assert answer_of(api.infer(DEFECTIVE))["params"]["score_mode"] == "top_mean"
        assert about(answer_of(api.calibrate())) == ("top_mean", 99, 1.0)


def test_a_first_calibration_that_names_a_score_gets_it(api: Api) -> None:
    assert about(answer_of(api.calibrate(score_percentile=97))) == ("percentile", 97, 1.0)
    assert about(answer_of(api.calibrate(score_mode="area", area_mm2_thr=2))) == ("area", 97, 2.0)


def test_ng_scores_alone_are_held_against_stored_scores_of_the_same_mode(api: Api) -> None:
    (ng_score,) = scores_of(api, [DEFECTIVE])
    calibrated = answer_of(api.calibrate(ng_scores=[ng_score]))
    ok = [answer_of(api.infer(image))["params"]["scores"]["percentile"] for image in plates(range(N_OK))]
    assert (calibrated["score_mode"], calibrated["ok_scores_from"]) == ("percentile", "stored")
    assert calibrated["p99_ok"] == pytest.approx(max(ok), rel=1e-6)
    assert calibrated["ng_mean"] == pytest.approx(ng_score)


def test_what_contradicts_the_scores_sent_is_named_and_not_applied(api: Api) -> None:
    answer_of(api.calibrate())
    scores = scores_of(api, plates(range(30, 34)))
    contradicting = {"score_mode": "max", "score_percentile": 95, "area_mm2_thr": 4.0}
    calibrated = answer_of(api.calibrate(ok_scores=scores, **contradicting))
    assert about(calibrated) == ("area", 99, 1.0)
    assert sorted(named(calibrated)) == sorted(contradicting)
    assert calibrated["threshold"] == max(scores)
    assert scores_of(api, plates(range(30, 34))) == scores


def test_another_area_measures_the_roi_s_own_scores_anew(api: Api) -> None:
    small, large = (answer_of(api.calibrate(area_mm2_thr=thr)) for thr in (1.0, 30.0))
    assert (small["score_mode"], large["score_mode"]) == ("area", "area")
    assert large["threshold"] < small["threshold"]
    assert large["threshold"] == pytest.approx(max(scores_of(api, plates(range(N_OK)))), rel=1e-6)


@pytest.mark.parametrize("mode", ["area", "max"])
def test_what_is_decided_is_what_is_drawn(api: Api, mode: str) -> None:
    answer_of(api.calibrate(score_mode=mode, margin=0.9))
    decisions = set()
    for image in [*plates(range(N_OK + 4)), DEFECTIVE]:
        found = answer_of(api.infer(image, heatmap="none"))
        assert bool(found["regions"]) == (found["decision"] == "ng")
        assert found["warnings"] == []
        decisions.add(found["decision"])
    assert decisions == {"ok", "ng"}


def test_a_roi_that_goes_back_to_an_earlier_memory_is_scored_as_that_one_s_calibration_says(api: Api) -> None:
    """The newest calibration is then of another memory, and may be of another mode."""
    old = answer_of(api.calibrate(score_mode="max"))
    answer_of(api.fit(plates([30])))
    answer_of(api.calibrate(score_mode="percentile"))
    answer_of(api.calibrate(ng_scores=[0.9]))  # which a fit cannot renew
    back = answer_of(api.fit(plates(range(N_OK)), mode="replace"))
    assert (back["calibration"], back["threshold"]) == ("kept", old["threshold"])
    found = answer_of(api.infer(DEFECTIVE))
    assert (found["threshold"], found["score"]) == (old["threshold"], found["params"]["scores"]["max"])
