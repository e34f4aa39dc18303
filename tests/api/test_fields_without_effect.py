"""Nothing that a request holds is left out of account in silence: unknown, misplaced and repeated fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from backend.api.field_names import close_name, unknown_keys
from backend.api.routing import WARNINGS_HEADER, Route
from backend.app import ROUTERS
from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import JSON_ROUTES, ROI, ROLE
from tests.testkit.fakes import encoded, good_image

MODEL = {"role_id": ROLE, "roi_id": ROI}
GET_ROUTES = ("/health", "/state", "/manifest", "/scores", "/recipes", "/datasets/list", "/audit", "/versions")
JSON_ROUTES_OF_ROIS = tuple(path for path in JSON_ROUTES if path != "/recipes/copy")


def png(seed: int) -> bytes:
    return encoded(good_image(seed, image_hw=(64, 64)))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("fields") / "models", audit=True) as api:
        answer_of(upload(api, "ok", [png(n) for n in range(4)]))
        answer_of(api.fit([png(n) for n in range(4)]))
        answer_of(api.calibrate())
        yield api


def upload(api: Api, label: str, images: list[bytes], *metas: str, **fields: str) -> httpx.Response:
    files: list[Any] = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(images)]
    files += [("metas", (None, meta, "application/json")) for meta in metas]
    return api.client.post(f"/datasets/{label}/upload", data={**MODEL, **fields}, files=files)


def named(answer: dict[str, Any], field: str) -> list[str]:
    return [sentence for sentence in answer["warnings"] if f"'{field}'" in sentence]


def test_every_route_is_of_the_kind_that_names_what_it_does_not_know() -> None:
    assert all(isinstance(route, Route) for router in ROUTERS for route in router.routes)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("Shape", "shape"),
        ("shpae", "shape"),
        ("heat_map", "heatmap"),
        ("heatMap", "heatmap"),
        ("images", "image"),
        ("image[]", "image"),
        ("modelKey", "model_key"),
        ("mm-per-px", "mm_per_px"),
        ("threshold", None),
        ("score_mode", None),
        ("use_dataset", None),
        ("", None),
    ],
)
def test_a_form_field_that_nobody_reads_is_named_with_what_was_meant(api: Api, sent: str, meant: str | None) -> None:
    answer = answer_of(api.infer(png(0), **{sent: "1"}))
    (sentence,) = named(answer, sent)
    assert ("did you mean" in sentence) == (meant is not None)
    assert meant is None or f"did you mean {meant}?" in sentence


def test_a_file_that_nobody_reads_is_named(api: Api) -> None:
    files = {"image": ("a.png", png(0)), "reference": ("b.png", png(1))}
    answer = answer_of(api.client.post("/infer", data={**MODEL, "mm_per_px": "0.2"}, files=files))
    assert named(answer, "reference")


def test_a_fit_and_an_upload_name_them_too(api: Api) -> None:
    assert named(answer_of(api.fit([png(0)], threshold="0.5")), "threshold")
    assert "did you mean coreset_rate?" in named(answer_of(api.fit([png(0)], coresetRate="0.5")), "coresetRate")[0]
    assert named(answer_of(upload(api, "ok", [png(0)], mm_per_px="0.2")), "mm_per_px")


def test_what_a_fit_and_an_inspection_know_is_not_named(api: Api) -> None:
    known = {"model_key": ROI, "recipe_id": "default", "shape": ""}
    fitted = answer_of(api.fit([png(0)], memory_fit="false", use_dataset="true", mode="add", **known))
    assert not [sentence for sentence in fitted["warnings"] if "no effect" in sentence]
    assert answer_of(api.infer(png(0), heatmap="none", **known))["warnings"] == []


@pytest.mark.parametrize("path", JSON_ROUTES_OF_ROIS)
def test_json_fields_that_nobody_reads_are_named(api: Api, path: str) -> None:
    versions = {"/versions/activate": {"version": 1}, "/versions/compare": {"a": 1}}
    sent = {**MODEL, **versions.get(path, {})}
    answer = answer_of(api.client.post(path, json={**sent, "rolle_id": "x", "wholly_other": {"a": 1}}))
    assert "did you mean role_id?" in named(answer, "rolle_id")[0]
    assert named(answer, "wholly_other")


def test_a_job_names_them_in_its_first_answer_and_in_its_result(api: Api) -> None:
    started = answer_of(
        api.client.post("/infer_dataset", json={**MODEL, "lables": ["ok"]}, headers={"Prefer": "respond-async"}), 202
    )
    assert named(started, "lables")
    for _ in range(2000):
        job = answer_of(api.client.get(started["status_url"]))
        if job["state"] not in ("queued", "running"):
            break
    assert job["state"] == "done", job
    assert named(job["result"], "lables")


@pytest.mark.parametrize("path", GET_ROUTES)
def test_parameters_that_nobody_reads_are_named(api: Api, path: str) -> None:
    query = {**MODEL, "limt": "3"} if path != "/health" else {"limt": "3"}
    answer = answer_of(api.client.get(path, params=query))
    (sentence,) = named(answer, "limt")
    assert ("did you mean limit?" in sentence) == (path == "/audit")


def test_deleting_names_them_too(api: Api) -> None:
    query = {**MODEL, "label": "ng", "file_name": "x", "filename": "nothing.png"}
    answer = answer_of(api.client.delete("/datasets/file", params=query))
    assert "did you mean filename?" in named(answer, "file_name")[0]
    answer = answer_of(api.client.request("DELETE", "/datasets/clear", params={**MODEL, "label": "ng"}, json={"a": 1}))
    assert answer["warnings"] == ["The body has no effect: this call reads nothing but its address."]


def test_a_known_field_in_the_wrong_place_is_named_with_the_right_one(api: Api) -> None:
    files = {"image": ("a.png", png(0))}
    sent = api.client.post("/infer?mm_per_px=9&shape=x", data={**MODEL, "mm_per_px": "0.2"}, files=files)
    answer = answer_of(sent)
    assert "a field of the form" in named(answer, "mm_per_px")[0]
    assert "a field of the form" in named(answer, "shape")[0]
    answer = answer_of(api.client.post("/calibrate_ng?score_mode=max", json=MODEL))
    assert "a field of the JSON body" in named(answer, "score_mode")[0]


def test_bytes_of_a_file_carry_them_in_a_header(api: Api) -> None:
    name = answer_of(api.client.get("/datasets/list", params=MODEL))["classes"]["ok"]["files"][0]
    query = {**MODEL, "label": "ok", "filename": name}
    assert WARNINGS_HEADER not in api.client.get("/datasets/file", params=query).headers
    (sentence,) = json.loads(api.client.get("/datasets/file", params={**query, "größe": "2"}).headers[WARNINGS_HEADER])
    assert "'größe'" in sentence


def test_a_thousand_of_them_are_not_a_thousand_sentences(api: Api) -> None:
    answer = answer_of(api.client.post("/calibrate_ng", json={**MODEL, **{f"other_{n}": n for n in range(999)}}))
    assert sum("no effect" in sentence for sentence in answer["warnings"]) == 21
    (sentence,) = answer_of(api.infer(png(0), **{"x" * 3000: "1"}))["warnings"]
    assert len(sentence) < 200


def test_an_error_names_what_was_meant_beside_what_is_missing(api: Api) -> None:
    body = error_of(api.infer(png(0), mm_per_px=None, mmPerPx="0.2"), 422, "invalid_input")
    assert "mm_per_px" in body["details"]["fields"]
    assert "did you mean mm_per_px?" in body["error"]


@pytest.mark.parametrize("name", ["mmPerPx", "mm_per_pixel", "default_mm_per_px", "Shape", "partId"])
def test_an_entry_of_metas_that_is_misspelt_is_named(api: Api, name: str) -> None:
    answer = answer_of(upload(api, "ok", [png(0)], json.dumps({name: 1})))
    assert "did you mean" in named(answer, name)[0]


def test_whatever_else_a_client_keeps_with_an_image_is_its_own_affair(api: Api) -> None:
    kept = {"mm_per_px": 0.2, "note": "x", "timestamp": 5, "serial": "17", "operator": {"shift": 2}, "shape_json": None}
    assert answer_of(upload(api, "ok", [png(0)], json.dumps(kept)))["warnings"] == []
    twice = '{"mm_per_px":0.2,"mm_per_px":0.3}'
    assert error_of(upload(api, "ok", [png(0)], twice), 422, "invalid_input")["details"]["field"] == "mm_per_px"


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ('{"kind":"rect","x":0,"y":0,"w":64,"h":64,"angle":30}', "angle"),
        ('{"kind":"rect","x":0,"y":0,"cx":32,"cy":32,"w":64,"h":64}', "x"),
        ('{"kind":"circle","cx":32,"cy":32,"r":30,"r_inner":10}', "r_inner"),
    ],
)
def test_an_entry_of_a_shape_that_is_not_read_is_named(api: Api, shape: str, field: str) -> None:
    for answer in (answer_of(api.infer(png(0), shape=shape)), answer_of(api.fit([png(0)], shape=shape))):
        assert named(answer, field)
    answer_of(api.fit([png(n) for n in range(4)], mode="replace"))


def test_an_entry_of_a_shape_that_comes_twice_is_refused(api: Api) -> None:
    shape = '{"kind":"circle","cx":32,"cy":32,"r":30,"r":10}'
    assert error_of(api.infer(png(0), shape=shape), 422, "invalid_input")["details"]["field"] == "shape.r"


def test_a_coreset_rate_that_memory_fit_overrides_is_named(api: Api) -> None:
    sentences = answer_of(api.fit([png(0)], memory_fit="true", coreset_rate="0.5"))["warnings"]
    assert any("coreset_rate has no effect" in sentence for sentence in sentences)
    for fields in ({"memory_fit": "false", "coreset_rate": "0.5"}, {"memory_fit": "true"}):
        assert not any("no effect" in sentence for sentence in answer_of(api.fit([png(0)], **fields))["warnings"])


class _Inner(BaseModel):
    level: int = 0


class _Outer(BaseModel):
    inner: _Inner | None = None
    several: list[_Inner] = []
    free: dict[str, Any] = {}


def test_nested_names_are_looked_at_and_free_ones_are_not() -> None:
    body = {"inner": {"levle": 1}, "several": [{"level": 1}, {"lvl": 2}], "free": {"any": {"thing": 1}}}
    sentences = list(unknown_keys(body, _Outer))
    assert len(sentences) == 2
    assert "'inner.levle' (did you mean inner.level?)" in sentences[0]
    assert close_name("scoreMode", ["score_mode", "shape"]) == "score_mode"


# What comes twice


@pytest.mark.parametrize("field", ["role_id", "roi_id", "mm_per_px", "shape", "heatmap", "model_key", "recipe_id"])
def test_a_text_field_that_comes_twice_is_refused(api: Api, field: str) -> None:
    parts: list[Any] = [(name, (None, value)) for name, value in {**MODEL, "mm_per_px": "0.2"}.items()]
    parts += [(field, (None, "0.2")), (field, (None, "0.2")), ("image", ("a.png", png(0)))]
    body = error_of(api.client.post("/infer", files=parts), 422, "invalid_input")
    assert field in body["error"]
    assert body["details"]["field"] == field


def test_an_image_that_comes_twice_is_refused_and_several_images_are_not(api: Api) -> None:
    parts = [("image", ("a.png", png(0))), ("image", ("b.png", png(1)))]
    body = error_of(api.client.post("/infer", data={**MODEL, "mm_per_px": "0.2"}, files=parts), 422, "invalid_input")
    assert body["details"]["field"] == "image"
    answer_of(api.fit([png(0), png(1)]))


def test_a_parameter_that_comes_twice_is_refused(api: Api) -> None:
    for path in ("/state", "/manifest", "/datasets/list"):
        query = [*MODEL.items(), ("roi_id", "another")]
        assert error_of(api.client.get(path, params=query), 422, "invalid_input")["details"]["field"] == "roi_id"
    error_of(api.client.get("/audit", params=[("limit", "1"), ("limit", "2")]), 422, "invalid_input")


@pytest.mark.parametrize("path", JSON_ROUTES_OF_ROIS)
def test_a_json_name_that_comes_twice_is_refused(api: Api, path: str) -> None:
    text = json.dumps(MODEL)[:-1] + ',"recipe_id":"a","recipe_id":"b"}'
    sent = api.client.post(path, content=text, headers={"Content-Type": "application/json"})
    assert error_of(sent, 422, "invalid_input")["details"]["field"] == "recipe_id"
