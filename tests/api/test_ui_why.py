"""The screen Why: an inspection shown with its regions and image check, and what keeping its image would do."""

from __future__ import annotations

import html
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.testkit.app import Api, answer_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

NAMED = {"role_id": ROLE, "roi_id": ROI}
N_OK = 9
HOSTILE = "\"><script>alert(1)</script>'&{{7*7}}.png"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("why") / "models"
    with running_app(folder) as api:
        answer_of(api.fit(plates(range(N_OK))))
        answer_of(upload(api, "ng", bad(100)))
        answer_of(api.calibrate(area_mm2_thr=0.5))
    return folder


@pytest.fixture
def api(models: Path, tmp_path: Path) -> Iterator[Api]:
    shutil.copytree(models, tmp_path / "models")
    with running_app(tmp_path / "models", audit=True, audit_images_mb=20) as started:
        yield started


def bad(seed: int, strength: int = 30) -> bytes:
    return encoded(with_defect(plate(seed), (24, 36, 24, 24), strength))


def upload(api: Api, label: str, image: bytes) -> httpx.Response:
    return api.client.post(f"/datasets/{label}/upload", data=NAMED, files={"images": ("more.png", image, "image/png")})


def inspected(api: Api, image: bytes) -> dict[str, Any]:
    return answer_of(api.infer(image, heatmap="none"))


def post(api: Api, part: str, **form: Any) -> httpx.Response:
    token = re.search(r'name="csrf_token" value="(\w+)"', api.client.get("/ui/system").text)
    assert token
    headers = {"HX-Request": "true", "X-CSRF-Token": token[1]}
    answer = api.client.post(f"/ui/why/{part}", params=NAMED, data=form, headers=headers)
    assert answer.status_code in (200, 204), answer.text
    return answer


def calib(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = answer_of(api.client.get("/manifest", params=NAMED))["calib"]
    return found


# --- an answer --------------------------------------------------------------------------------------------------------


def test_an_inspection_is_shown_with_its_regions_and_the_good_place_beside_the_hottest(api: Api) -> None:
    found = inspected(api, bad(101))
    (region, *_) = found["regions"]
    text = html.unescape(post(api, "found", answer=json.dumps(found), name="part.png").text)
    assert f"{found['score']:.4f}" in text
    assert f"{region['area_mm2']:.2f}" in text
    nearest = region["nearest"]
    assert nearest["name"] in text
    boxes = [[float(each) for each in box.split()] for box in re.findall(r'<svg viewBox="([^"]+)"', text)]
    for (x, y, w, h), place in zip(boxes, (region, nearest), strict=True):
        assert (x + w / 2, y + h / 2) == (place["x"] + place["w"] / 2, place["y"] + place["h"] / 2)
        assert w == h >= max(region["w"], region["h"])
    address = re.search(r'<image href="([^"]+)" width="96" height="96"', text)
    assert address
    assert api.client.get(address[1]).headers["Content-Type"] == "image/png"
    verdicts = {"ok": "like the good images", "unusual": "unusual", "foreign": "no image of this ROI"}
    assert verdicts[found["image_check"]["verdict"]] in text
    assert 'data-act="try" data-value="ok"' in text


def test_an_image_of_something_else_is_shown_with_what_is_strange_about_it(api: Api) -> None:
    found = inspected(api, encoded(plate(1) // 8))
    assert found["reject_reason"] == "image"
    text = post(api, "found", answer=json.dumps(found), name="dark.png").text
    assert "no image of this ROI" in text
    assert "because of the image" in text
    largest = max(found["image_check"]["statistics"].values(), key=lambda each: abs(each["distance"]))
    assert f"{largest['distance']:.2f}".replace("-", "−") in text
    assert found["warnings"][0] in html.unescape(text)


def test_an_inspection_without_a_calibration_is_shown(api: Api) -> None:
    answer_of(api.fit(plates(range(N_OK)), roi_id="other"))
    found = answer_of(api.infer(bad(101), heatmap="none", roi_id="other"))
    assert "no decision" in post(api, "found", answer=json.dumps(found), name="part.png").text


def test_what_an_answer_holds_is_escaped(api: Api) -> None:
    found = inspected(api, bad(101))
    found["warnings"] = [HOSTILE]
    found["params"]["score_mode"] = HOSTILE
    found["regions"][0]["nearest"]["name"] = HOSTILE
    text = post(api, "found", answer=json.dumps(found), name=HOSTILE).text
    assert "<script>alert" not in text
    assert "{{7*7}}" in text


@pytest.mark.parametrize(
    "answer",
    ["", "{", "[]", "{}", '{"score": 1}', '{"score":"much","threshold":null,"decision":null}', "null", '{"score":NaN}'],
)
def test_what_is_no_answer_is_said_to_be_none(api: Api, answer: str) -> None:
    refused = post(api, "found", answer=answer, name="x")
    assert refused.headers["HX-Retarget"] == "#notices"
    assert "could not be read" in refused.text


def test_many_regions_fit_into_the_form(api: Api) -> None:
    found = inspected(api, bad(101))
    found["regions"] = [{**found["regions"][0], "contour": []}] * 300
    text = post(api, "found", answer=json.dumps(found), name="x").text
    assert text.count(" px at x ") == 50


# --- what keeping it would do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"margin": 1.3}, {"threshold": 0.3}], ids=str)
@pytest.mark.parametrize(("label", "image"), [("ng", bad(102, 14)), ("ok", encoded(plate(50)))], ids=["ng", "ok"])
def test_what_an_image_would_do_is_shown_and_nothing_is_changed(
    api: Api, settings: dict[str, float], label: str, image: bytes
) -> None:
    answer_of(api.calibrate(**settings))
    before = calib(api)
    params = inspected(api, image)["params"]
    shown = post(
        api,
        "would",
        label=label,
        score=params["measured_score"],
        mode=params["score_mode"],
        digest=params["image_digest"],
    )
    added = {f"add_{label}_scores": [params["measured_score"]]}
    said = answer_of(api.calibrate(**settings, **added, dry_run=True))
    assert f"{before['threshold']:.4f}" in shown.text
    assert f"{said['threshold']:.4f}" in shown.text
    assert f"{said['n_ok'] - said['ok_rejected']}" in shown.text
    assert f"of {said['n_ok']}" in shown.text
    assert f"of {said['n_ng']}" in shown.text
    assert f'data-act="keep" data-value="{label}"' in shown.text
    assert calib(api) == before


def test_what_other_images_have_changed_is_said_beside_it(api: Api) -> None:
    answer_of(upload(api, "ng", bad(103, 12)))
    params = inspected(api, bad(104))["params"]
    without = answer_of(api.calibrate(dry_run=True))["threshold"]
    assert without != calib(api)["threshold"]
    shown = post(api, "would", label="ng", score=params["measured_score"], mode=params["score_mode"], digest="x")
    assert f"would already give {without:.3f}" in shown.text


def test_a_calibration_of_scores_that_were_sent_is_said_to_be_replaced(api: Api) -> None:
    answer_of(api.calibrate(ok_scores=[0.2, 0.3, 0.4]))
    params = inspected(api, bad(104))["params"]
    shown = post(api, "would", label="ng", score=params["measured_score"], mode=params["score_mode"], digest="x")
    assert "scores that were sent" in shown.text


@pytest.mark.parametrize(
    ("image", "said"),
    [(encoded(plate(0)), "stored as good"), (bad(100), "stored as bad")],
    ids=["learned", "bad"],
)
def test_an_image_that_is_stored_already_is_not_stored_again(api: Api, image: bytes, said: str) -> None:
    params = inspected(api, image)["params"]
    form = {"score": params["measured_score"], "mode": params["score_mode"], "digest": params["image_digest"]}
    for label in ("ok", "ng"):
        shown = post(api, "would", label=label, **form)
        assert said in shown.text
        assert "data-act" not in shown.text


@pytest.mark.parametrize("form", [{}, {"score": "x"}, {"score": "nan"}, {"score": "-1"}, {"score": "0.3", "mode": "y"}])
def test_a_score_that_is_none_is_refused(api: Api, form: dict[str, str]) -> None:
    assert post(api, "would", label="ok", **form).headers["HX-Retarget"] == "#notices"


# --- keeping it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"margin": 1.3}, {"threshold": 0.3}, {"ok_percentile": 50}], ids=str)
def test_a_bad_image_counts_once_it_is_stored_with_the_settings_in_force(api: Api, settings: dict[str, float]) -> None:
    answer_of(api.calibrate(**settings))
    (name,) = answer_of(upload(api, "ng", bad(102, 14)))["saved"]
    shown = post(api, "kept", label="ng", name=name)
    now = calib(api)
    assert now["n_ng"] == 2
    assert f"{now['threshold']:.3f}" in shown.text
    assert name in shown.text
    for setting, value in settings.items():
        assert now[setting] == value


def test_a_good_image_counts_once_it_is_learned(api: Api) -> None:
    before = calib(api)
    (name,) = answer_of(upload(api, "ok", encoded(plate(50))))["saved"]
    shown = post(api, "kept", label="ok", name=name)
    assert "/ui/why/learn" in shown.text
    assert calib(api) == before
    job = re.search(r"/ui/jobs/[0-9a-f]+", post(api, "learn").text)
    assert job
    while 'data-state="done"' not in api.client.get(job[0], headers={"HX-Request": "true"}).text:
        time.sleep(0.05)
    assert calib(api)["n_ok"] == N_OK + 1


def test_a_bad_image_of_a_roi_without_a_threshold_is_only_stored(api: Api) -> None:
    answer_of(api.fit(plates(range(3)), roi_id="other"))
    token = re.search(r'name="csrf_token" value="(\w+)"', api.client.get("/ui/system").text)
    assert token
    shown = api.client.post(
        "/ui/why/kept",
        params={**NAMED, "roi_id": "other"},
        data={"label": "ng", "name": "x.png"},
        headers={"HX-Request": "true", "X-CSRF-Token": token[1]},
    )
    assert "x.png" in shown.text
    assert not answer_of(api.client.get("/state", params={**NAMED, "roi_id": "other"}))["calib_present"]


# --- decisions --------------------------------------------------------------------------------------------------------


def page_of(api: Api, **query: Any) -> str:
    answer = api.client.get("/ui/why", params={**NAMED, **query})
    assert answer.status_code == 200, answer.text
    return html.unescape(answer.text)


def decisions(api: Api, n: int) -> list[dict[str, Any]]:
    """Return the decisions of the ROI, newest first, once there are n: they are written beside the answers."""
    found: list[dict[str, Any]] = []
    for _ in range(400):
        found = answer_of(api.client.get("/decisions", params=NAMED))["decisions"]
        if len(found) >= n:
            break
        time.sleep(0.05)
    return found


def test_decisions_are_listed_and_each_leads_to_itself(api: Api) -> None:
    assert "No decisions yet" in page_of(api)
    answer_of(api.infer(bad(101), serial=HOSTILE))
    answer_of(api.infer(encoded(plate(50))))
    newest, oldest = decisions(api, 2)
    text = page_of(api)
    for found in (newest, oldest):
        assert f"decision={found['id']}" in text
    assert "<script>alert" not in api.client.get("/ui/why", params=NAMED).text
    only_ng = page_of(api, verdict="ng")
    assert f"decision={oldest['id']}" in only_ng
    assert f"decision={newest['id']}" not in only_ng
    assert f"decision={newest['id']}" in page_of(api, **{"from": "2020-01-01T00:00:00Z"})
    assert f"decision={newest['id']}" not in page_of(api, to="2020-01-01T00:00:00Z")
    assert f"decision={newest['id']}" not in page_of(api, before=newest["id"])


def test_a_decision_is_shown_with_the_image_that_the_audit_keeps(api: Api) -> None:
    found = answer_of(api.infer(bad(101), serial="SN-7", heatmap="none"))
    (decision,) = decisions(api, 1)
    text = page_of(api, decision=decision["id"])
    assert f"{found['score']:.4f}" in text
    assert "SN-7" in text
    assert f"{found['regions'][0]['area_mm2']:.2f}" in text
    assert 'data-mm-per-px="0.2"' in text
    for view in ("image", "overlay"):
        address = re.search(rf'data-view="{view}" src="([^"]+)"', text)
        assert address
        assert api.client.get(address[1]).status_code == 200


def test_a_decision_without_its_image_is_shown_by_what_is_kept(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    with running_app(tmp_path / "models") as api:
        found = answer_of(api.infer(bad(101), heatmap="none"))
        (decision,) = decisions(api, 1)
        text = page_of(api, decision=decision["id"])
    assert f"{found['score']:.4f}" in text
    assert "The image is not kept" in text
    assert f"{found['regions'][0]['area_mm2']:.3f}" in text
    assert "data-act" not in text


def test_whoever_may_only_inspect_sees_a_decision_and_not_its_image(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    admin, inspect = "admin-0123456789abcdef", "inspect-0123456789abcdef"
    keys = f"admin:{admin},inspect:{inspect}"
    with running_app(tmp_path / "models", audit=True, audit_images_mb=20, api_keys=keys) as api:
        shown = {}
        for key in (admin, inspect):
            api.client.headers["X-API-Key"] = key
            answer_of(api.infer(bad(101), heatmap="none"))
            shown[key] = page_of(api, decision=decisions(api, 1)[-1]["id"])
    assert "data-act" in shown[admin]
    assert "The image is not kept" in shown[inspect]
    assert "data-act" not in shown[inspect]


@pytest.mark.parametrize("decision", ["99", "0", "-1", "x", "9" * 30, "²"])
def test_a_decision_that_is_not_kept_is_said_to_be_gone_or_passed_over(api: Api, decision: str) -> None:
    text = page_of(api, decision=decision)
    assert "data-name=" not in text
    assert ("no longer kept" in text) == (decision in ("99", "0"))


@pytest.mark.parametrize("query", [{"from": "yesterday"}, {"verdict": "maybe"}, {"before": "x"}])
def test_a_time_that_is_none_is_refused_with_a_sentence(api: Api, query: dict[str, str]) -> None:
    answer = api.client.get("/ui/why", params={**NAMED, **query})
    assert answer.status_code == 422
    assert "invalid_input" in answer.text


def test_a_roi_that_has_learned_nothing_has_no_decisions(api: Api) -> None:
    text = page_of(api, roi_id="other")
    assert "No decisions yet" in text
    assert 'id="send"' not in text
