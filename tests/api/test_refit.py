"""``POST /refit``: memories of another extractor or an older format, made anew over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts.formats import bank_from_bytes
from tests.testkit.app import Api, answer_of, error_of, ready, running_app
from tests.testkit.client import DEADLINE_S, ROI, ROLE
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, plates
from tests.testkit.older_files import older_calibration, older_memory

NAMED = {"role_id": ROLE, "roi_id": ROI}
SHAPE = {"kind": "rect", "x": 0.0, "y": 0.0, "w": 48.0, "h": 96.0}


def start(models: Path, variant: str = "b", **settings: Any) -> Any:
    return running_app(models, loader=ready(FakeExtractor(variant=variant)), **settings)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a ROI of extractor a: four images of two parts, learned with a shape, and calibrated."""
    with start(tmp_path / "models", "a") as api:
        answer_of(api.fit(plates(range(4)), part_id=["one", "one", "two", "two"], shape=SHAPE, coreset_rate="0.25"))
        answer_of(api.calibrate(score_mode="max", margin=1.5))
    return tmp_path / "models"


@pytest.fixture
def api(models: Path) -> Iterator[Api]:
    """The service on that folder, with another extractor."""
    with start(models) as api:
        yield api


def refit(api: Api, status: int = 200, *, headers: Any = None, **body: Any) -> dict[str, Any]:
    return answer_of(api.client.post("/refit", json=body or NAMED, headers=headers), status)


def fit_facts(api: Api) -> dict[str, Any]:
    fit: dict[str, Any] = answer_of(api.client.get("/manifest", params=NAMED))["fit"]
    return fit


def test_the_refusal_names_the_remedy_and_the_remedy_helps(api: Api) -> None:
    refused = error_of(api.infer(plates([9])[0]), 409, "extractor_mismatch")
    assert "POST /refit or `roi-inspector refit`" in refused["error"]
    before = fit_facts(api)
    answer = refit(api)
    assert (answer["status"], answer["n_done"], answer["n_skipped"], answer["n_failed"]) == ("ok", 1, 0, 0)
    (item,) = answer["items"]
    assert {name: item[name] for name in ("role_id", "roi_id", "model_key", "recipe_id", "status")} == {
        **NAMED,
        "model_key": ROI,
        "recipe_id": "default",
        "status": "done",
    }
    assert (item["n_ok_total"], item["calibration"], item["set_aside"]) == (4, "renewed", None)
    assert (item["error"], item["code"]) == (None, None)
    after = fit_facts(api)
    changed = {"extractor_id", "checksum"}
    assert {name for name in after if after[name] != before[name]} == changed
    assert (after["n_parts"], after["shape"], after["coreset_rate"]) == (2, SHAPE, 0.25)
    calibration = answer_of(api.client.get("/manifest", params=NAMED))["calib"]
    assert (calibration["score_mode"], calibration["margin"]) == ("max", 1.5)
    assert calibration["threshold"] == item["threshold"]
    assert answer_of(api.infer(plates([9])[0]))["decision"] is not None


def test_what_is_up_to_date_is_skipped_unless_forced(api: Api) -> None:
    refit(api)
    (item,) = refit(api)["items"]
    assert (item["status"], item["n_ok_total"], item["calibration"], item["threshold"]) == ("skipped", None, None, None)
    (item,) = refit(api, **NAMED, force=True)["items"]
    assert (item["status"], item["calibration"]) == ("done", "kept")


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_an_older_format_are_made_anew(api: Api, version: int) -> None:
    path = api.roi_folder() / "memory.npz"
    before = bank_from_bytes(path.read_bytes())
    path.write_bytes(older_memory(before, version, extractor_id="the first version", coreset_rate=0.5, k=2))
    path.with_name("calib.json").write_bytes(older_calibration(version))
    refused = error_of(api.infer(plates([9])[0]), 409, "artefact_outdated")
    assert "POST /refit or `roi-inspector refit`" in refused["error"]
    (item,) = refit(api)["items"]
    assert (item["status"], item["calibration"]) == ("done", "renewed")
    after = bank_from_bytes(path.read_bytes())
    assert (after.image_digests, after.part_ids, after.shape) == (before.image_digests, before.part_ids, before.shape)
    assert (after.options.coreset_rate, after.options.k) == (0.5, 2)
    answer = answer_of(api.infer(plates([9])[0]))
    assert answer["decision"] is not None
    assert (answer["params"]["score_percentile"], answer["params"]["k"]) == (97, 2)


def test_a_damaged_memory_is_made_anew(api: Api) -> None:
    path = api.roi_folder() / "memory.npz"
    before, data = bank_from_bytes(path.read_bytes()), bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    error_of(api.infer(plates([9])[0]), 500, "artefact_corrupt")
    assert refit(api)["items"][0]["calibration"] == "renewed"
    after = bank_from_bytes(path.read_bytes())
    assert (after.image_digests, after.shape) == (before.image_digests, before.shape)
    assert answer_of(api.client.get("/health"))["status"] == "ok"


def test_a_threshold_from_ng_scores_is_set_aside_and_named(models: Path) -> None:
    with start(models, "a") as api:
        before = answer_of(api.calibrate(ng_scores=[1.5]))
    with start(models) as api:
        bad = {"images": ("bad.png", encoded(defective_image(3)), "image/png")}
        answer_of(api.client.post("/datasets/ng/upload", data=NAMED, files=bad))
        (item,) = refit(api)["items"]
        assert (item["calibration"], item["threshold"]) == ("stale", None)
        assert item["set_aside"] == {
            "threshold": before["threshold"],
            "ok_scores_from": "stored",
            "n_ok": 2,
            "n_ng": 1,
        }
        assert any("(bad ones stored: 1)" in warning for warning in item["warnings"])
        answer = answer_of(api.infer(plates([9])[0]))
        assert (answer["threshold"], answer["decision"]) == (None, None)
        assert answer_of(api.client.get("/state", params=NAMED))["calibration_stale"]


def test_a_missing_image_is_named(api: Api) -> None:
    files = answer_of(api.client.get("/datasets/list", params=NAMED))["classes"]["ok"]["files"]
    answer_of(api.client.request("DELETE", "/datasets/file", params={**NAMED, "label": "ok", "filename": files[0]}))
    (item,) = refit(api)["items"]
    assert item["n_ok_total"] == 3
    digits = files[0].removesuffix(".png").rpartition("-")[2]
    assert any("no longer stored" in warning and digits in warning for warning in item["warnings"])


def test_a_model_of_its_own_key_is_made_anew_by_its_name(models: Path) -> None:
    with start(models, "a") as api:
        answer_of(api.fit(plates([7, 8]), model_key="other"))
    with start(models) as api:
        (item,) = refit(api, **NAMED, model_key="other")["items"]
        assert (item["model_key"], item["n_ok_total"]) == ("other", 2)
        error_of(api.infer(plates([9])[0]), 409, "extractor_mismatch")  # the ROI's own is as it was
        assert answer_of(api.infer(plates([9])[0], model_key="other"))["score"] > 0


def test_all_models_of_all_recipes_are_made_anew_and_each_has_its_line(models: Path) -> None:
    with start(models, "a") as api:
        answer_of(api.fit(plates([7, 8]), roi_id="lost"))
        answer_of(api.fit(plates([7, 8]), recipe_id="summer"))
        clear = {"role_id": ROLE, "roi_id": "lost", "label": "ok"}
        assert answer_of(api.client.request("DELETE", "/datasets/clear", params=clear))["cleared"] == 2
    with start(models) as api:
        answer = refit(api, all=True)
        assert (answer["n_done"], answer["n_skipped"], answer["n_failed"]) == (2, 0, 1)
        lines = [(item["recipe_id"], item["roi_id"], item["status"], item["code"]) for item in answer["items"]]
        assert lines == [
            ("default", ROI, "done", None),
            ("default", "lost", "failed", "not_found"),
            ("summer", ROI, "done", None),
        ]
        assert "None of the 2 images" in answer["items"][1]["error"]
        assert refit(api, all=True)["n_skipped"] == 2
        of_summer = refit(api, all=True, force=True, recipe_id="summer")
        assert [(item["recipe_id"], item["status"]) for item in of_summer["items"]] == [("summer", "done")]


def test_a_named_roi_that_cannot_be_made_anew_is_an_error_of_its_own(api: Api) -> None:
    error_of(api.client.post("/refit", json={"role_id": ROLE, "roi_id": "nobody"}), 400, "memory_not_found")
    error_of(api.client.post("/refit", json={**NAMED, "recipe_id": "last"}), 400, "reserved_recipe_id")
    for label in ("ok", "ng"):
        answer_of(api.client.request("DELETE", "/datasets/clear", params={**NAMED, "label": label}))
    assert "mode=replace" in error_of(api.client.post("/refit", json=NAMED), 404, "not_found")["error"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "role_id"),
        ({"role_id": ROLE}, "roi_id"),
        ({"all": False}, "role_id"),
        ({**NAMED, "all": True}, "all"),
        ({"all": True, "model_key": "x"}, "all"),
        ({"all": "perhaps"}, "all"),
        ({**NAMED, "force": 7}, "force"),
        ({"role_id": "", "roi_id": ROI}, "role_id"),
    ],
)
def test_a_body_that_names_neither_or_both_is_422_and_names_the_field(
    api: Api, body: dict[str, Any], field: str
) -> None:
    error = error_of(api.client.post("/refit", json=body), 422, "invalid_input")
    assert error["details"]["field"] == field


def test_without_an_extractor_it_is_503(models: Path) -> None:
    with running_app(models, extractor="dinov2", weights=models / "nothing.safetensors") as api:
        for body in (NAMED, {"all": True}):
            error_of(api.client.post("/refit", json=body), 503, "weights_unavailable")


def test_a_call_that_takes_too_long_is_ended_and_the_old_memory_stays(models: Path) -> None:
    before = (models / ROLE / ROI / "memory.npz").read_bytes()
    with start(models, request_timeout_s=1e-6) as api:
        error_of(api.client.post("/refit", json=NAMED), 503, "request_timeout")
    assert (models / ROLE / ROI / "memory.npz").read_bytes() == before


class Stopped(FakeExtractor):
    """Lets one image through, then waits for the test."""

    def __init__(self) -> None:
        super().__init__(variant="b")
        self.begun, self.go_on = threading.Event(), threading.Event()

    def extract(self, image_bgr: Any) -> Any:
        if self.calls:
            self.begun.set()
            assert self.go_on.wait(DEADLINE_S)
        return super().extract(image_bgr)


def wait_for(api: Api, job_id: str, *states: str) -> dict[str, Any]:
    while (job := answer_of(api.client.get(f"/jobs/{job_id}")))["state"] not in states:
        assert job["state"] in ("queued", "running"), job
    return job


def test_in_the_background_it_has_progress_over_the_images_and_the_same_answer(models: Path) -> None:
    extractor = Stopped()
    with running_app(models, loader=ready(extractor)) as api:
        started = refit(api, 202, headers={"Prefer": "respond-async"}, all=True)
        assert started["kind"] == "refit"
        assert extractor.begun.wait(DEADLINE_S)
        job = answer_of(api.client.get(started["status_url"]))
        assert (job["state"], job["total"]) == ("running", 4)
        extractor.go_on.set()
        job = wait_for(api, started["job_id"], "done")
        assert (job["result"]["n_done"], job["result"]["items"][0]["status"]) == (1, "done")
        assert job["progress"] == 1
        assert answer_of(api.infer(plates([9])[0]))["decision"] is not None


def test_a_job_that_is_cancelled_ends_between_images_and_the_old_memory_stays(models: Path) -> None:
    extractor = Stopped()
    before = (models / ROLE / ROI / "memory.npz").read_bytes()
    with running_app(models, loader=ready(extractor)) as api:
        started = refit(api, 202, headers={"Prefer": "respond-async"}, **NAMED)
        assert extractor.begun.wait(DEADLINE_S)
        answer_of(api.client.delete(started["status_url"]))
        extractor.go_on.set()
        wait_for(api, started["job_id"], "cancelled")
        assert len(extractor.calls) < 4
    assert (models / ROLE / ROI / "memory.npz").read_bytes() == before


def test_a_refit_counts_as_a_fit_in_the_metrics(api: Api) -> None:
    refit(api)
    refit(api)  # skipped
    (line,) = [each for each in api.client.get("/metrics").text.splitlines() if each.startswith("bdi_fits_total{")]
    assert line.endswith(" 1.0")
