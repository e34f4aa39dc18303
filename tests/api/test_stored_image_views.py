"""Stored images as pictures, and good ones that are kept out of the fits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import defective_image, encoded, good_image

MODEL = {"role_id": ROLE, "roi_id": ROI}
GOOD = [encoded(good_image(seed, image_hw=(64, 96))) for seed in range(5)]


def upload(api: Api, label: str, images: list[bytes], **fields: str) -> list[str]:
    files = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(images)]
    saved = answer_of(api.client.post(f"/datasets/{label}/upload", data={**MODEL, **fields}, files=files))["saved"]
    return [str(name) for name in saved]


def fit(api: Api, **fields: str) -> dict[str, Any]:
    return answer_of(api.fit([], use_dataset="true", **fields))


def picture_of(response: httpx.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "image/png"
    return Image.open(io.BytesIO(response.content))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("views") / "models") as started:
        upload(started, "ok", GOOD)
        upload(started, "ng", [encoded(defective_image(9, image_hw=(64, 96)))])
        fit(started)
        yield started


def listed(api: Api, label: str = "ok") -> dict[str, Any]:
    found: dict[str, Any] = answer_of(api.client.get("/datasets/list", params=MODEL))["classes"][label]
    return found


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("edge_px", "size"), [(16, (16, 11)), (48, (48, 32)), (96, (96, 64)), (4096, (96, 64))])
def test_a_preview_is_a_png_of_at_most_the_edge_that_is_asked_for(
    api: Api, edge_px: int, size: tuple[int, int]
) -> None:
    query = {**MODEL, "label": "ok", "filename": listed(api)["files"][0], "edge_px": edge_px}
    assert picture_of(api.client.get("/datasets/preview", params=query)).size == size


def test_a_preview_of_what_no_browser_shows_is_a_png_too(api: Api) -> None:
    file = io.BytesIO()
    Image.fromarray(good_image(50, image_hw=(64, 96))[:, :, ::-1]).save(file, "TIFF")
    (name,) = upload(api, "ok", [file.getvalue()], roi_id="tiff")
    query = {**MODEL, "roi_id": "tiff", "label": "ok", "filename": name}
    shown = picture_of(api.client.get("/datasets/preview", params=query))
    assert np.array_equal(np.asarray(shown), good_image(50, image_hw=(64, 96))[:, :, ::-1])


@pytest.mark.parametrize("edge_px", [0, 15, 4097, "x", 1e9])
@pytest.mark.parametrize("path", ["/datasets/preview", "/scores/map"])
def test_an_edge_out_of_range_is_refused(api: Api, path: str, edge_px: object) -> None:
    query = {**MODEL, "label": "ok", "filename": listed(api)["files"][0], "edge_px": str(edge_px)}
    error_of(api.client.get(path, params=query), 422, "invalid_input")


@pytest.mark.parametrize("path", ["/datasets/preview", "/scores/map"])
@pytest.mark.parametrize("filename", ["x", "../memory.npz", "..\\x", "\x00"])
def test_there_is_no_picture_of_a_file_that_is_not_listed(api: Api, path: str, filename: str) -> None:
    query = {**MODEL, "label": "ok", "filename": filename}
    error_of(api.client.get(path, params=query), 404, "not_found")


def test_the_map_of_a_learned_image_comes_from_the_other_parts(api: Api) -> None:
    query = {**MODEL, "label": "ok", "filename": listed(api)["files"][0], "view": "heatmap"}
    answer = api.client.get("/scores/map", params=query)
    heatmap = picture_of(answer)
    assert (heatmap.mode, heatmap.size) == ("L", (96, 64))
    assert answer.headers["X-Scoring"] == "leave_one_out"
    assert float(answer.headers["X-Score"]) > 0
    assert np.asarray(heatmap).max() > 0, "compared with itself, it would be all zero"


def test_the_map_of_a_bad_image_is_that_of_an_inspection(api: Api) -> None:
    (name,) = listed(api, "ng")["files"]
    answer = api.client.get("/scores/map", params={**MODEL, "label": "ng", "filename": name})
    assert picture_of(answer).size == (96, 64)
    assert answer.headers["X-Scoring"] == "new"
    inspected = answer_of(api.infer(encoded(defective_image(9, image_hw=(64, 96)))))
    assert float(answer.headers["X-Score"]) == inspected["params"]["measured_score"]


def test_there_is_no_map_before_a_fit(api: Api) -> None:
    (name,) = upload(api, "ok", GOOD[:1], roi_id="unfitted")
    query = {**MODEL, "roi_id": "unfitted", "label": "ok", "filename": name}
    error_of(api.client.get("/scores/map", params=query), 400, "memory_not_found")


# --- excluded images --------------------------------------------------------------------------------------------------


@pytest.fixture
def fitted(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models") as started:
        upload(started, "ok", GOOD)
        fit(started)
        yield started


def exclude(api: Api, filename: str, **fields: object) -> dict[str, Any]:
    return answer_of(api.client.post("/datasets/exclude", json={**MODEL, "filename": filename, **fields}))


def test_an_excluded_image_is_kept_and_not_learned_until_it_is_let_in_again(fitted: Api) -> None:
    first = listed(fitted)["files"][0]
    assert exclude(fitted, first)["excluded"] is True
    assert listed(fitted)["excluded"] == [first]
    assert len(listed(fitted)["files"]) == 5
    assert fit(fitted)["n_ok_total"] == 4
    assert exclude(fitted, first, excluded=False)["excluded"] is False
    assert listed(fitted)["excluded"] == []
    assert fit(fitted)["n_ok_total"] == 5


def test_an_excluded_image_takes_no_part_in_a_calibration(fitted: Api) -> None:
    calibrate = {**MODEL, "area_mm2_thr": 0.1}
    assert answer_of(fitted.client.post("/calibrate_dataset", json=calibrate))["n_ok"] == 5
    exclude(fitted, listed(fitted)["files"][0])
    assert answer_of(fitted.client.post("/calibrate_dataset", json=calibrate))["n_ok"] == 4
    assert fit(fitted)["calibration"] == "renewed"
    assert answer_of(fitted.client.get("/manifest", params=MODEL))["calib"]["n_ok"] == 4


def test_an_excluded_image_stays_so_when_its_folder_is_uploaded_again(fitted: Api) -> None:
    first = listed(fitted)["files"][0]
    exclude(fitted, first)
    upload(fitted, "ok", GOOD)
    assert listed(fitted)["excluded"] == [first]


def test_a_fit_that_brings_an_excluded_image_learns_it_and_lets_it_in(fitted: Api) -> None:
    exclude(fitted, listed(fitted)["files"][0])
    assert fit(fitted)["n_ok_total"] == 4
    answer_of(fitted.fit(GOOD))
    assert listed(fitted)["excluded"] == []
    assert fit(fitted)["n_ok_total"] == 5


def test_all_images_excluded_are_none_to_fit(fitted: Api) -> None:
    for name in listed(fitted)["files"]:
        exclude(fitted, name)
    error_of(fitted.fit([], use_dataset="true"), 422, "invalid_input")


def test_what_is_not_there_cannot_be_excluded_and_no_folder_is_made(fitted: Api) -> None:
    for name in ("x.png", "../x", "\x00"):
        body = {"role_id": ROLE, "roi_id": "nowhere", "filename": name}
        error_of(fitted.client.post("/datasets/exclude", json=body), 404, "not_found")
    assert not (fitted.models / ROLE / "nowhere").exists()


def test_an_exclusion_outlives_the_process(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        upload(api, "ok", GOOD)
        first = listed(api)["files"][0]
        exclude(api, first)
    with running_app(tmp_path / "models") as api:
        assert listed(api)["excluded"] == [first]


def test_a_field_that_an_exclusion_does_not_read_is_named(fitted: Api) -> None:
    answer = exclude(fitted, listed(fitted)["files"][0], exclude=False)
    assert "did you mean excluded?" in answer["warnings"][0]
