"""``POST /versions/compare``: two versions on the same stored images, and who changes sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testkit.app import Api, answer_of, error_of, files_below, ready, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image

NAMED = {"role_id": ROLE, "roi_id": ROI}


def png(*seeds: int) -> list[bytes]:
    return [encoded(good_image(seed, image_hw=(64, 64))) for seed in seeds]


def bad(*seeds: int) -> list[bytes]:
    return [encoded(defective_image(seed, image_hw=(64, 64))) for seed in seeds]


def upload(api: Api, label: str, images: list[bytes], **fields: str) -> None:
    files: list[Any] = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(images)]
    answer_of(api.client.post(f"/datasets/{label}/upload", data={**NAMED, **fields}, files=files))


def compare(api: Api, a: int, b: int | None = None, **fields: Any) -> dict[str, Any]:
    return answer_of(api.client.post("/versions/compare", json={**NAMED, "a": a, "b": b, **fields}))


def inspected(api: Api) -> dict[str, dict[str, Any]]:
    answer = answer_of(api.client.post("/infer_dataset", json=NAMED))
    return {item["filename"]: item for item in answer["items"]}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A ROI with good and bad images, four versions, and what data set runs answered under each."""
    with running_app(tmp_path / "models", image_check="off") as started:
        upload(started, "ok", png(*range(10)))
        upload(started, "ng", bad(20, 21))
        yield started


def test_each_version_scores_and_decides_as_it_did_while_it_was_in_force(api: Api) -> None:
    runs = {}
    answer_of(api.fit(png(0, 1, 2, 3)))
    runs[1] = inspected(api)
    answer_of(api.calibrate())
    runs[2] = inspected(api)
    answer_of(api.fit(png(4, 5)))
    answer_of(api.calibrate(threshold=0.2, score_mode="max"))
    runs[4] = inspected(api)
    before = files_below(api.models)
    for a, b in ((2, 4), (4, 2), (1, 2), (2, None), (2, 2)):
        answer = compare(api, a, b)
        assert (answer["a"]["version"], answer["b"]["version"]) == (a, b or 4)
        assert answer["n_images"] == len(answer["images"]) == 12
        assert [each["label"] for each in answer["images"]] == ["ok"] * 10 + ["ng"] * 2
        assert answer["n_errors"] == 0
        for each in answer["images"]:
            for side, number in (("a", a), ("b", b or 4)):
                run, judged = runs[number][each["filename"]], each[side]
                assert judged["score"] == pytest.approx(run["score"], rel=1e-5), (each, number)
                assert (judged["threshold"], judged["decision"]) == (run["threshold"], run["decision"])
                assert judged["scoring"] == run["scoring"]
            decisions = {each["a"]["decision"], each["b"]["decision"]}
            assert each["changed"] == (decisions == {"ok", "ng"})
        assert answer["n_changed"] == sum(each["changed"] for each in answer["images"])
        for side in ("a", "b"):
            rejected = [each["label"] for each in answer["images"] if each[side]["decision"] == "ng"]
            assert (answer[side]["ok_rejected"], answer[side]["ng_caught"]) == (
                rejected.count("ok"),
                rejected.count("ng"),
            )
    assert compare(api, 2, 4)["n_changed"] > 0, "a threshold so low rejects good parts"
    assert files_below(api.models) == before, "nothing is stored"


def test_as_a_job_it_tells_how_far_it_is(api: Api) -> None:
    answer_of(api.fit(png(0, 1, 2, 3)))
    answer_of(api.calibrate())
    now = compare(api, 1, 2)
    body = {**NAMED, "a": 1, "b": 2}
    response = api.client.post("/versions/compare", json=body, headers={"Prefer": "respond-async"})
    url = answer_of(response, 202)["status_url"]
    for _ in range(2000):
        job = answer_of(api.client.get(url))
        if job["state"] not in ("queued", "running"):
            break
    assert (job["state"], job["done"], job["total"]) == ("done", 12, 12)
    assert {**job["result"], "request_id": ""} == {**now, "request_id": ""}


def test_what_cannot_be_compared_is_said(api: Api) -> None:
    url = "/versions/compare"
    error_of(api.client.post(url, json={**NAMED, "a": 1}), 404, "not_found")
    answer_of(api.fit(png(0, 1, 2)))
    error_of(api.client.post(url, json={**NAMED, "a": 2}), 404, "not_found")
    error_of(api.client.post(url, json={**NAMED, "a": 1, "b": 2}), 404, "not_found")
    for wrong in (0, "1", True, 1.5, None, 10**9):
        error_of(api.client.post(url, json={**NAMED, "a": wrong}), 422, "invalid_input")
    with running_app(api.models, loader=ready(FakeExtractor())) as other:
        error_of(other.client.post(url, json={**NAMED, "a": 1}), 409, "extractor_mismatch")


def test_a_roi_without_stored_images_has_nothing_to_compare_on(api: Api) -> None:
    named = {**NAMED, "roi_id": "other"}
    answer_of(api.fit(png(0, 1, 2), roi_id="other"))
    for image in answer_of(api.client.get("/datasets/list", params=named))["classes"]["ok"]["files"]:
        answer_of(api.client.delete("/datasets/file", params={**named, "label": "ok", "filename": image}))
    body = {**named, "a": 1}
    error_of(api.client.post("/versions/compare", json=body), 422, "invalid_input")


def test_an_image_that_cannot_be_scored_has_its_error_in_its_own_line(api: Api) -> None:
    answer_of(api.fit(png(0, 1, 2, 3)))
    answer_of(api.calibrate())
    upload(api, "ng", [encoded(good_image(40, image_hw=(64, 128)))])  # of another shape
    answer = compare(api, 1)
    assert (answer["n_images"], answer["n_errors"]) == (13, 1)
    (failed,) = [each for each in answer["images"] if each["error"]]
    assert (failed["a"], failed["b"], failed["changed"], failed["label"]) == (None, None, False, "ng")
    assert "aspect ratio" in failed["error"]


def test_a_part_that_a_version_has_learned_alone_is_an_error_and_no_score(api: Api) -> None:
    answer_of(api.fit(png(0)))
    answer_of(api.fit(png(1, 2)))
    answer = compare(api, 1, 2)
    (alone,) = [each for each in answer["images"] if each["error"]]
    assert (alone["a"], alone["b"]["scoring"]) == (None, "leave_one_out")
    assert {each["a"]["decision"] for each in answer["images"] if each["a"]} == {None}


def test_versions_calibrated_within_shapes_are_compared_within_them(api: Api) -> None:
    answer_of(api.client.delete("/datasets/clear", params={**NAMED, "label": "ng"}))
    shape = '{"kind":"rect","x":0,"y":0,"w":40,"h":40}'
    files: list[Any] = [("images", (f"s{n}.png", data, "image/png")) for n, data in enumerate(bad(30, 31))]
    files += [("metas", (None, '{"shape":' + shape + "}", "application/json"))] * 2
    answer_of(api.client.post("/datasets/ng/upload", data=NAMED, files=files))
    answer_of(api.fit(png(0, 1, 2, 3)))
    answer_of(api.client.post("/calibrate_dataset", json={**NAMED, "score_mode": "max"}))
    run = inspected(api)
    for each in compare(api, 2)["images"]:
        assert each["a"]["score"] == pytest.approx(run[each["filename"]]["score"], rel=1e-5)
