"""Fits over HTTP: what comes back, what accumulates, what is refused, and whose artefacts are whose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.testkit.app import MM_PER_PX, SMALL_INPUT_PX, Api, answer_of, error_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

CELLS = 8 * 8


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models") as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service whose ROI has learned three plates, for tests that change nothing or name a ROI of their own."""
    with running_app(tmp_path_factory.mktemp("shared") / "models") as started:
        answer_of(started.fit(plates(range(3))))
        yield started


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer to one plain fit of six plates."""
    with running_app(tmp_path_factory.mktemp("fit") / "models") as api:
        return answer_of(api.fit(plates(range(6)), headers={"X-Request-Id": "fit-1"}))


def test_a_fit_answers_every_field_with_its_type_and_value(fitted: dict[str, Any]) -> None:
    expected = {
        "status": "ok",
        **dict.fromkeys(("roi_id", "model_key"), ROI),
        "role_id": ROLE,
        "recipe_id": "default",
        "request_id": "fit-1",
        "n_ok_total": 6,
        "n_new": 6,
        "n_duplicates": 0,
        "n_parts": 6,
        "n_embeddings": 6 * CELLS,
        "coreset_size": math.ceil(0.02 * 6 * CELLS),
        "coreset_rate_requested": 0.02,
        "coreset_rate_applied": pytest.approx(8 / (6 * CELLS)),
        "token_shape": [8, 8],
        "cell_mm": pytest.approx(96 / 8 * MM_PER_PX),
        "mm_per_px": MM_PER_PX,
        "extractor": "filter-bank",
        "calibration": "none",
        "threshold": None,
    }
    assert {name: fitted[name] for name in expected} == expected
    assert len(fitted["checksum"]) == 64
    assert any("6 good parts" in text for text in fitted["warnings"])
    assert min(fitted["timings_ms"].values()) >= 0 < fitted["timings_ms"]["total"]
    scores = fitted["ok_scores"]  # of its images, each without its own part
    assert scores["n"] == 6
    assert 0 < scores["p50"] <= scores["p95"] <= scores["p99"] <= scores["max"]
    assert fitted["suggested_threshold"] == pytest.approx(scores["max"])


def test_the_coreset_keeps_the_share_that_was_asked_for(api: Api) -> None:
    images = plates(range(3))
    for rate, expected in (("0.01", 2), ("0.05", 10), ("0.5", 96), ("1", 192), ("1e-9", 1)):
        answer = answer_of(api.fit(images, coreset_rate=rate))
        assert answer["coreset_size"] == expected
        assert answer["coreset_rate_requested"] == float(rate)
        assert answer["coreset_rate_applied"] == pytest.approx(expected / (3 * CELLS))


def test_one_image_is_learned_and_the_answer_says_how_little_that_is(api: Api) -> None:
    answer = answer_of(api.fit(plates([0])))
    assert (answer["n_ok_total"], answer["ok_scores"], answer["suggested_threshold"]) == (1, None, None)
    assert any("One good part is not enough" in text for text in answer["warnings"])


def test_other_file_formats_and_sizes_of_the_same_aspect_ratio_are_learned(api: Api) -> None:
    answer_of(api.fit([encoded(plate(0)), encoded(plate(1), "JPEG")]))
    assert answer_of(api.fit(plates([2], (192, 192))))["n_ok_total"] == 3


@pytest.mark.parametrize(
    "calls",
    [[[0, 1, 2], [3, 4, 5]], [[5], [4, 3, 2, 1, 0]], [[3, 1], [1, 3, 5], [0, 2, 4, 4]]],
    ids=["two halves", "last one first", "with repeats"],
)
def test_several_fits_equal_one_fit_byte_for_byte(
    tmp_path: Path, fitted: dict[str, Any], calls: list[list[int]]
) -> None:
    with running_app(tmp_path / "at-once") as at_once:
        answer_of(at_once.fit(plates(range(6))))
    with running_app(tmp_path / "models") as api:
        answers = [answer_of(api.fit(plates(seeds))) for seeds in calls]
    assert answers[-1]["n_ok_total"] == 6
    assert answers[-1]["checksum"] == fitted["checksum"]
    for name in ("memory.npz", "index.faiss"):
        assert (api.roi_folder() / name).read_bytes() == (at_once.roi_folder() / name).read_bytes()


def test_a_repeated_image_is_counted_and_not_learned_twice(api: Api) -> None:
    first = answer_of(api.fit(plates([0, 1, 2])))
    again = answer_of(api.fit([*plates([2, 3]), encoded(plate(0), "BMP")]))
    assert (again["n_ok_total"], again["n_new"], again["n_duplicates"]) == (4, 1, 2)
    assert again["n_embeddings"] == first["n_embeddings"] + CELLS
    within = answer_of(api.fit(plates([7, 7, 7])))
    assert (within["n_ok_total"], within["n_new"], within["n_duplicates"]) == (5, 1, 2)


def test_replacing_forgets_what_was_learned(api: Api, fitted: dict[str, Any]) -> None:
    answer_of(api.fit(plates(range(50, 54))))
    replaced = answer_of(api.fit(plates(range(6)), mode="replace"))
    assert (replaced["n_ok_total"], replaced["n_new"]) == (6, 6)
    assert replaced["checksum"] == fitted["checksum"]
    added = answer_of(api.fit(plates([6])))
    assert added["n_ok_total"] == 7


@pytest.mark.parametrize(
    ("fields", "images"),
    [({"mm_per_px": "0.1"}, plates([8, 9])), ({}, plates([8, 9], (96, 160)))],
    ids=["another scale", "another aspect ratio"],
)
def test_replacing_mends_a_roi_that_was_fitted_otherwise(api: Api, fields: dict[str, Any], images: list[bytes]) -> None:
    answer_of(api.fit(plates(range(3))))
    assert api.fit(images, **fields).status_code == 409
    answer = answer_of(api.fit(images, mode="replace", **fields))
    assert answer["n_ok_total"] == 2
    answer_of(api.infer(images[0], **fields))


def test_images_of_one_part_are_left_out_together(api: Api) -> None:
    first = plate(0)
    second = first.copy()
    second[5, 5] ^= 8  # the same part, photographed again
    images = [encoded(first), encoded(second), *plates([1, 2, 3])]
    apart = answer_of(api.fit(images, memory_fit="true", roi_id="apart"))
    together = answer_of(api.fit(images, memory_fit="true", part_id=["A", "A", "B", "C", "D"]))
    assert (apart["n_parts"], together["n_parts"], together["n_ok_total"]) == (4, 4, 5)  # too few to leave both out
    scored_apart = answer_of(api.infer(images[0], roi_id="apart"))["score"]
    scored_together = answer_of(api.infer(images[0]))["score"]
    assert scored_apart < 0.25 * scored_together


def test_the_answer_says_whether_the_roi_is_aligned_and_the_figure_it_rests_on(api: Api) -> None:
    few = answer_of(api.fit(plates(range(7))))
    assert (few["aligned"], few["alignment"]) == (False, None)
    enough = answer_of(api.fit(plates([7])))
    assert enough["aligned"] is True
    assert 0.4 < enough["alignment"] < 1
    manifest = answer_of(api.client.get("/manifest", params={"role_id": ROLE, "roi_id": ROI}))
    assert {name: manifest["fit"][name] for name in ("aligned", "alignment")} == {
        name: enough[name] for name in ("aligned", "alignment")
    }
    said = answer_of(api.fit(plates([8]), aligned="no"))
    assert said["aligned"] is False
    assert said["alignment"] == pytest.approx(enough["alignment"], abs=0.1)
    assert answer_of(api.fit(plates([9])))["aligned"] is False


def test_a_roi_that_is_said_to_be_aligned_is_so_from_eight_parts_on(api: Api) -> None:
    answer = answer_of(api.fit(plates(range(3)), aligned="yes"))
    assert answer["aligned"] is False
    assert any("from 8 good parts on" in text for text in answer["warnings"])
    assert answer_of(api.fit(plates(range(3, 8))))["aligned"] is True


def test_another_word_for_aligned_is_422_and_names_the_field(api: Api) -> None:
    error = error_of(api.fit(plates([0]), aligned="true"), 422, "invalid_input")
    assert "aligned" in error["error"]


def test_a_fitted_shape_limits_what_is_learned(api: Api) -> None:
    ring = {"kind": "annulus", "cx": 47.5, "cy": 47.5, "r": 40, "r_inner": 20}
    answer = answer_of(api.fit(plates(range(3)), shape=ring))
    assert 0 < answer["n_embeddings"] < 3 * CELLS
    params = answer_of(api.infer(plates([9])[0]))["params"]
    assert params["learned_shape"] == ring
    kept = answer_of(api.fit(plates([3])))
    assert kept["n_embeddings"] == answer["n_embeddings"] * 4 // 3, "a later fit without a shape keeps the learned one"


def test_two_fits_at_the_same_time_both_count(api: Api, fitted: dict[str, Any]) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = [answer_of(response) for response in pool.map(api.fit, (plates([0, 1, 2]), plates([3, 4, 5])))]
    assert max(answer["n_ok_total"] for answer in answers) == 6
    assert fitted["checksum"] in {answer["checksum"] for answer in answers}


# --- what must agree with the first fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["fit", "infer"])
@pytest.mark.parametrize("hw", [(96, 120), (200, 96)])
def test_another_aspect_ratio_is_refused(shared: Api, endpoint: str, hw: tuple[int, int]) -> None:
    image = plates([5], hw)[0]
    body = error_of(shared.fit([image]) if endpoint == "fit" else shared.infer(image), 409, "aspect_ratio_mismatch")
    assert f"{hw[1]}×{hw[0]}" in body["error"]
    assert "96×96" in body["error"]


def test_one_image_of_another_aspect_ratio_spoils_the_whole_call(api: Api) -> None:
    body = error_of(api.fit([*plates(range(3)), plates([3], (96, 160))[0]]), 409, "aspect_ratio_mismatch")
    assert "good-3.png" in body["error"]
    assert not api.roi_folder().exists()


def test_cuts_that_differ_by_a_pixel_share_the_grid_of_the_first(api: Api) -> None:
    """At 300×266 px the grid is 8×8, at 300×265 px an extractor by itself would take 9×8."""
    first, narrower = (300, 266), (300, 265)
    fitted = answer_of(api.fit(plates(range(3), first)))
    assert fitted["token_shape"] == [8, 8]
    more = answer_of(api.fit(plates([3], narrower)))
    assert (more["n_ok_total"], more["token_shape"]) == (4, [8, 8])
    part = plate(7, first)
    whole, cut = (answer_of(api.infer(encoded(pixels))) for pixels in (part, np.ascontiguousarray(part[:, :-1])))
    assert cut["token_shape"] == [8, 8]
    assert cut["score"] == pytest.approx(whole["score"], rel=0.05)
    both_at_once = answer_of(api.fit([*plates([4], narrower), *plates([5], first)], mode="replace"))
    assert both_at_once["n_ok_total"] == 2


def test_each_image_of_a_call_is_compared_with_the_roi_and_not_with_the_first_of_the_call(api: Api) -> None:
    answer_of(api.fit(plates(range(3), (300, 266))))
    images = [*plates([3], (300, 271)), *plates([4], (300, 276))]  # 1.9 and 3.8 % wider than those of the ROI
    assert "good-1.png" in error_of(api.fit(images), 409, "aspect_ratio_mismatch")["error"]


def test_a_memory_of_another_extractor_is_refused_after_a_restart(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates(range(3))))
    with running_app(tmp_path / "models", input_size=80) as api:
        for response in (api.infer(plates([9])[0]), api.fit(plates([9]))):
            body = error_of(response, 409, "extractor_mismatch")
            assert f"input={SMALL_INPUT_PX}" in body["error"]
            assert "input=80" in body["error"]
            assert "POST /refit" in body["error"]
            assert "mode=replace" in body["error"]
        assert answer_of(api.fit(plates([9]), mode="replace"))["token_shape"] == [10, 10]
    with running_app(tmp_path / "models") as api:
        error_of(api.infer(plates([9])[0]), 409, "extractor_mismatch")


# --- whose artefacts --------------------------------------------------------------------------------------------------


def not_fitted(response: httpx.Response) -> None:
    body = error_of(response, 400, "memory_not_found")
    assert "memory not found" in body["error"]
    assert "run /fit_ok first" in body["error"]


@pytest.mark.parametrize("an_id", ["Prüfung", "检测-1", "роль", "inspección_2", "roi 1", "CON", "recipes", "a.b", "🙂"])
def test_ids_of_any_language_come_back_as_sent_and_keep_their_artefacts(shared: Api, an_id: str) -> None:
    fitted = answer_of(shared.fit(plates(range(2)), role_id=an_id, roi_id=an_id, model_key=None))
    assert (fitted["role_id"], fitted["roi_id"], fitted["model_key"]) == (an_id, an_id, an_id)
    found = answer_of(shared.infer(plates([9])[0], role_id=an_id, roi_id=an_id))
    assert (found["role_id"], found["params"]["memory_checksum"]) == (an_id, fitted["checksum"])
    not_fitted(shared.infer(plates([9])[0], role_id=an_id, roi_id="other"))
    not_fitted(shared.infer(plates([9])[0], role_id="other", roi_id=an_id))
    with running_app(shared.models) as restarted:
        answer_of(restarted.infer(plates([9])[0], role_id=an_id, roi_id=an_id))


def test_a_word_typed_on_two_systems_is_one_id(api: Api) -> None:
    answer_of(api.fit(plates(range(2)), roi_id="Pru\u0308fung"))
    answer_of(api.infer(plates([9])[0], roi_id="Pr\u00fcfung"))


def test_ids_that_differ_by_case_alone_never_share_artefacts(api: Api) -> None:
    upper = answer_of(api.fit(plates([0, 1]), roi_id="Pattern"))
    not_fitted(api.infer(plates([9])[0], roi_id="pattern"))
    before = (api.roi_folder("Pattern") / "memory.npz").read_bytes()
    lower = answer_of(api.fit(plates([2, 3, 4]), roi_id="pattern"))
    assert lower["n_ok_total"] == 3
    assert (api.roi_folder("Pattern") / "memory.npz").read_bytes() == before
    folders = [path.name for path in (api.models / ROLE).iterdir()]
    assert len(folders) == len({name.casefold() for name in folders}) == 2, "nor would they on Windows"
    for roi_id, answer in (("Pattern", upper), ("pattern", lower)):
        assert answer_of(api.infer(plates([9])[0], roi_id=roi_id))["params"]["memory_checksum"] == answer["checksum"]


def test_a_model_key_has_its_own_memory_beside_the_rois(api: Api) -> None:
    own = answer_of(api.fit(plates([0, 1])))
    other = answer_of(api.fit(plates([2, 3, 4]), model_key="night-shift"))
    assert (own["model_key"], other["model_key"]) == (ROI, "night-shift")
    assert other["n_ok_total"] == 3
    assert answer_of(api.infer(plates([9])[0]))["params"]["memory_checksum"] == own["checksum"]
    found = answer_of(api.infer(plates([9])[0], model_key="night-shift"))
    assert found["params"]["memory_checksum"] == other["checksum"]
    assert answer_of(api.infer(plates([9])[0], model_key=ROI))["params"]["memory_checksum"] == own["checksum"]


def test_a_defect_that_was_fitted_as_good_is_still_scored_without_itself(api: Api) -> None:
    wrong = encoded(with_defect(plate(5), (30, 30, 24, 24)))
    answer_of(api.fit([*plates(range(4)), wrong], memory_fit="true"))
    scores = {seed: answer_of(api.infer(plates([seed])[0]))["params"]["scores"]["max"] for seed in range(4)}
    assert answer_of(api.infer(wrong))["params"]["scores"]["max"] > 2 * np.median(list(scores.values()))
