"""GET /scores: the scores of a ROI's stored images under every mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from backend.services import scores as listing
from tests.testkit.app import Api, answer_of, error_of, files_below, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

NAMED = {"role_id": ROLE, "roi_id": ROI}
N_OK = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "models"
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


def scores(api: Api) -> dict[str, Any]:
    return answer_of(api.client.get("/scores", params=NAMED))


def test_all_images_come_with_the_scores_of_all_modes(api: Api) -> None:
    found = scores(api)
    assert [image["label"] for image in found["images"]] == ["ok"] * N_OK + ["ng"] * 2
    assert all(set(image["scores"]) == set(listing.MODES) for image in found["images"])
    assert len({image["image_digest"] for image in found["images"]}) == N_OK + 2
    assert found["threshold"] is None
    assert found["warnings"] == []


@pytest.mark.parametrize("mode", listing.MODES)
def test_the_threshold_of_a_mode_is_what_calibrate_ng_sets(api: Api, mode: str) -> None:
    answer_of(api.calibrate(area_mm2_thr=0.5))
    promised = scores(api)["thresholds"][mode]
    answer_of(api.calibrate(score_mode=mode))
    found = scores(api)
    assert found["score_mode"] == mode
    assert found["threshold"] == pytest.approx(promised["threshold"], rel=1e-6)
    assert (promised["n_ok"], promised["n_ng"]) == (N_OK, 2)


def test_scores_are_of_the_images_that_are_stored_now_and_asking_stores_nothing(api: Api) -> None:
    before = files_below(api.models)
    assert scores(api)["images"] == scores(api)["images"]
    assert files_below(api.models) == before
    answer_of(api.client.request("DELETE", "/datasets/clear", params={**NAMED, "label": "ng"}))
    assert {image["label"] for image in scores(api)["images"]} == {"ok"}


def test_scores_are_made_once_for_a_memory(api: Api) -> None:
    first = scores(api)
    with mock.patch.object(listing, "image_scores", side_effect=AssertionError):
        assert scores(api)["images"] == first["images"]


def test_a_roi_that_was_never_fitted_is_400(api: Api) -> None:
    error_of(api.client.get("/scores", params={**NAMED, "roi_id": "nobody"}), 400, "memory_not_found")
    error_of(api.client.get("/scores", params={"role_id": ROLE}), 422, "invalid_input")
