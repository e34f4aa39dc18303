"""The screen Threshold: what it asks the public interface for, and what it makes of the answers."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from math import log2
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.ui.screens.threshold import MODES, settings_of
from tests.testkit.app import Api, answer_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

NAMED = {"role_id": ROLE, "roi_id": ROI}
N_OK = 6
HTMX = {"HX-Request": "true"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "models"
    with running_app(folder) as api:
        answer_of(api.fit(plates(range(N_OK))))
        files = [("images", (f"bad-{n}.png", bad(n), "image/png")) for n in (100, 101)]
        answer_of(api.client.post("/datasets/ng/upload", data=NAMED, files=files))
    return folder


@pytest.fixture
def api(models: Path, tmp_path: Path) -> Iterator[Api]:
    shutil.copytree(models, tmp_path / "models")
    with running_app(tmp_path / "models") as started:
        yield started


def bad(seed: int) -> bytes:
    return encoded(with_defect(plate(seed), (24, 36, 24, 24)))


def shown(api: Api, path: str = "", **query: Any) -> str:
    answer = api.client.get(f"/ui/threshold{path}", params={**NAMED, **query}, headers=HTMX if path else {})
    assert answer.status_code == 200, answer.text
    return html.unescape(answer.text)


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r"data-scores='(.*?)'>", text)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def post(api: Api, path: str, **form: str) -> httpx.Response:
    page = api.client.get("/ui/threshold", params=NAMED)
    token = re.search(r'name="csrf_token" value="(\w+)"', page.text)
    assert token
    return api.client.post(f"/ui/threshold/{path}", params=NAMED, data=form, headers={**HTMX, "X-CSRF-Token": token[1]})


def calib(api: Api) -> dict[str, Any] | None:
    found: dict[str, Any] | None = answer_of(api.client.get("/manifest", params=NAMED))["calib"]
    return found


def test_a_roi_that_has_learned_nothing_is_sent_to_learn(api: Api) -> None:
    assert "/ui/learn?role_id=Inspection&roi_id=other" in shown(api, roi_id="other")


def test_the_settings_in_force_stand_in_the_form(api: Api) -> None:
    assert "no threshold yet" in shown(api)
    answer_of(
        api.calibrate(score_mode="top_mean", margin=1.25, ok_percentile=80, area_mm2_thr=0.5, score_percentile=97)
    )
    text = shown(api)
    for field in (
        'name="score_mode" value="top_mean" checked',
        'value="1.25"',
        'value="80"',
        'value="0.5"',
        'value="97"',
    ):
        assert field in text
    answer_of(api.calibrate(ng_scores=[0.9]))
    answer_of(api.fit(plates([40])))
    assert "older memory" in shown(api)


@pytest.mark.parametrize("mode", MODES)
def test_the_histogram_is_that_of_the_scores_and_worth_what_they_say(api: Api, mode: str) -> None:
    found = answer_of(api.client.get("/scores", params={**NAMED, "margin": 1.1}))
    data = data_of(shown(api, "/scores", score_mode=mode, margin="1,1", ok_percentile=""))
    assert data["mode"] == mode
    assert data["proposed"] == found["thresholds"][mode]["threshold"]
    centres, good, bad_ones = data["bars"]
    assert (sum(filter(None, good)), sum(filter(None, bad_ones))) == (N_OK, -2)
    width = centres[1] - centres[0]
    for image in found["images"]:
        place = int((log2(image["scores"][mode]) - centres[0] + width / 2) / width)
        assert (good if image["label"] == "ok" else bad_ones)[min(place, len(centres) - 1)]
    assert [round(2 ** image["at"], 6) for image in data["images"]] == sorted(
        round(image["scores"][mode], 6) for image in found["images"]
    )
    assert data["good"] == sorted(data["good"])
    assert data["worth"]["good"] == [f"{N_OK - n} of {N_OK}" for n in range(N_OK + 1)]
    assert data["worth"]["bad"] == ["2 of 2", "1 of 2", "0 of 2"]
    for promise, said in zip(found["promises"], data["worth"]["promises"], strict=True):
        assert said["expected"] == f"{1000 * promise['expected_false_alarm_rate']:,.1f}"
        assert said["bound"] == f"{1000 * promise['false_alarm_rate_upper_95']:,.1f}"
    first = api.client.get(data["images"][0]["src"])
    assert (first.status_code, first.headers["Content-Type"]) == (200, "image/png")


def test_the_threshold_in_force_is_marked_under_its_own_mode_alone(api: Api) -> None:
    answer_of(api.calibrate(score_mode="max"))
    assert "in-force" in shown(api, "/scores", score_mode="max")
    assert "in-force" not in shown(api, "/scores", score_mode="area")
    assert 'value="rule" checked' in shown(api, "/scores", score_mode="max")


def test_a_threshold_that_was_set_by_hand_is_where_the_line_stands(api: Api) -> None:
    answer_of(api.calibrate(score_mode="max", threshold=0.3))
    text = shown(api, "/scores", score_mode="max")
    assert 'value="hand" checked' in text
    assert 'value="0.3000"' in text


def test_too_few_good_parts_leave_the_hand(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", min_ok_samples=4) as api:
        answer_of(api.fit(plates(range(3))))
        text = shown(api, "/scores")
        assert data_of(text)["proposed"] is None
        assert 'value="hand" checked' in text
        assert 'value="rule" disabled' in text


def test_scores_of_nothing_and_of_zero_have_a_place(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates([1])))
        assert data_of(shown(api, "/scores"))["images"] == []
        flat = encoded(plate(1) * 0 + 90)
        answer_of(api.fit([flat, encoded(plate(1) * 0 + 91)], roi_id="flat"))
        data = data_of(shown(api, "/scores", roi_id="flat"))
        assert sum(filter(None, data["bars"][1])) == len(data["images"])


def test_a_dry_run_shows_what_would_change_and_changes_nothing(api: Api) -> None:
    answer_of(api.calibrate(score_mode="max"))
    before = calib(api)
    answer = post(api, "try", score_mode="max", how="hand", threshold="0,25", margin="1.3")
    asked = answer_of(api.calibrate(score_mode="max", threshold=0.25, dry_run=True))
    assert before is not None
    for value in (before["threshold"], 0.25):
        assert f"{value:.4f}" in answer.text
    assert f"{1000 * asked['false_alarm_rate_upper_95']:.1f}" in answer.text
    assert "margin" not in answer.text, "it has no effect by hand, and is not sent"
    assert calib(api) == before


def test_what_is_applied_is_in_force(api: Api) -> None:
    answer = post(api, "apply", score_mode="top_mean", how="rule", threshold="0.9", margin="1.2", area_mm2_thr="0.4")
    assert (answer.headers["HX-Retarget"], answer.headers["HX-Trigger"]) == ("#notices", "threshold-applied")
    found = calib(api)
    assert found is not None
    assert [found[name] for name in ("score_mode", "margin", "area_mm2_thr", "method")] == [
        "top_mean",
        1.2,
        0.4,
        "between_ok_and_ng",
    ]


@pytest.mark.parametrize(
    ("name", "text"), [("margin", "x"), ("margin", "9"), ("threshold", "-1"), ("threshold", "nan"), ("threshold", "")]
)
@pytest.mark.parametrize("path", ["try", "apply"])
def test_what_the_service_refuses_is_said_and_changes_nothing(api: Api, path: str, name: str, text: str) -> None:
    how = "hand" if name == "threshold" else "rule"
    answer = post(api, path, how=how, **{name: text})
    assert answer.headers["HX-Retarget"] == "#notices"
    assert name in answer.text
    assert calib(api) is None


def test_whoever_may_only_inspect_sees_the_scores_and_changes_nothing(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    admin, inspect = "admin-0123456789abcdef", "inspect-0123456789abcdef"
    with running_app(tmp_path / "models", api_keys=f"admin:{admin},inspect:{inspect}") as api:
        for key, may_change in ((admin, True), (inspect, False)):
            api.client.headers["X-API-Key"] = key
            text = shown(api, "/scores")
            assert data_of(text)["proposed"]
            assert ("/ui/threshold/try" in text) == may_change
            answer = post(api, "apply", score_mode="max")
            assert ("threshold-applied" in answer.headers.get("HX-Trigger", "")) == may_change


@pytest.mark.parametrize(
    ("form", "asked"),
    [
        ({}, {}),
        ({"score_mode": "area", "margin": " 1,5 ", "ok_percentile": ""}, {"score_mode": "area", "margin": 1.5}),
        ({"score_mode": "max", "score_percentile": "99"}, {"score_mode": "max"}),
        ({"score_mode": "percentile", "score_percentile": "99"}, {"score_mode": "percentile", "score_percentile": 99}),
        ({"how": "hand", "threshold": "0.3", "margin": "2", "ok_percentile": "1"}, {"threshold": 0.3}),
        ({"how": "hand", "margin": "2"}, {"threshold": ""}),
        ({"margin": "inf"}, {"margin": "inf"}),
        ({"how": "rule", "threshold": "0.3", "margin": "2"}, {"margin": 2}),
        ({"how": "hand", "threshold": "much", "score_mode": "<script>"}, {"threshold": "much"}),
    ],
)
def test_a_form_becomes_settings(form: dict[str, str], asked: dict[str, Any]) -> None:
    assert settings_of(form) == asked
