"""A shape that is sent to ``/infer`` only is judged by the good parts' scores under that very shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from backend.demo.samples import machined_ring, render_defective, render_good
from backend.imaging.image_codec import encode_png
from backend.roi_mask import shape_fields, shape_mask
from tests.testkit.app import Api, answer_of, heatmap_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import plate

NAMED = {"role_id": ROLE, "roi_id": ROI}
PX, N_OK = 192, 16
MM_PER_PX = 0.4
RING = shape_fields(machined_ring(PX))
WHOLE = {"kind": "rect", "x": 0, "y": 0, "w": PX, "h": PX}


def on_a_littered_belt(image: np.ndarray, seed: int) -> bytes:
    """Return a rendered part with chips and swarf around it that differ from part to part, outside the ring."""
    rng = np.random.default_rng([seed, 77])
    littered = image.copy()
    for _ in range(40):
        x, y = (int(value) for value in rng.integers(0, PX, 2))
        end = (x + int(rng.integers(-14, 15)), y + int(rng.integers(-14, 15)))
        cv2.line(littered, (x, y), end, [int(rng.integers(0, 256))] * 3, int(rng.integers(1, 4)))
    ring = machined_ring(PX)
    inside = shape_mask(shape_fields_wider(ring), (PX, PX))
    littered[inside] = image[inside]
    return encode_png(littered)


def shape_fields_wider(ring: Any) -> Any:
    return type(ring)(cx=ring.cx, cy=ring.cy, r=ring.r + 8, r_inner=0.0)


def good(seed: int) -> bytes:
    return on_a_littered_belt(render_good(seed, size_px=PX, mm_per_px=MM_PER_PX).image_bgr, seed)


def defective(seed: int, kind: Any) -> bytes:
    sample = render_defective(seed, kind, size_px=PX, mm_per_px=MM_PER_PX)
    return on_a_littered_belt(sample.image_bgr, seed)


def infer(api: Api, image: bytes, shape: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return answer_of(api.infer(image, shape=shape, mm_per_px=str(MM_PER_PX), **fields))


def calibrate(api: Api, **fields: Any) -> dict[str, Any]:
    return answer_of(api.calibrate(**{"mm_per_px": MM_PER_PX, **fields}))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ROI that has learned the whole image of parts on a belt that is littered around them, not calibrated."""
    folder = tmp_path_factory.mktemp("shapes") / "models"
    with running_app(folder, input_size=192) as api:
        answer_of(api.fit([good(seed) for seed in range(N_OK)], mm_per_px=str(MM_PER_PX)))
    return folder


@pytest.fixture
def api(models: Path, tmp_path: Path) -> Iterator[Api]:
    shutil.copytree(models, tmp_path / "models")
    with running_app(tmp_path / "models", input_size=192) as started:
        yield started


@pytest.mark.parametrize("mode", ["percentile", "area", "max"])
def test_a_ring_sent_to_infer_only_finds_what_the_threshold_of_the_whole_image_misses(api: Api, mode: str) -> None:
    whole = calibrate(api, score_mode=mode)["threshold"]
    goods = [infer(api, good(500 + seed), RING) for seed in range(12)]
    bads = [infer(api, defective(700 + n, kind), RING) for kind in ("pit", "dent", "rust") for n in range(4)]
    (ring,) = {answer["threshold"] for answer in (*goods, *bads)}
    assert ring < 0.8 * whole
    false_alarms = sum(answer["decision"] == "ng" for answer in goods)
    found = sum(answer["decision"] == "ng" for answer in bads)
    found_by_whole = sum(answer["score"] > whole for answer in bads)
    assert false_alarms <= 3  # 16 parts promise about 6 %, at most 17 %
    assert found >= found_by_whole + 3, (found, found_by_whole, ring, whole)


def test_the_threshold_is_what_the_learned_images_score_under_the_ring(api: Api) -> None:
    calibrate(api, score_mode="max", ok_percentile=80, margin=1.1)
    answers = [infer(api, good(seed), RING) for seed in range(N_OK)]
    scores = np.array([answer["score"] for answer in answers])
    expected = 1.1 * np.percentile(scores, 80, method="higher")
    assert answers[0]["threshold"] == pytest.approx(expected, rel=1e-5)


def test_a_shape_that_covers_what_was_learned_has_the_very_threshold_of_the_calibration(api: Api) -> None:
    calibrated = calibrate(api)["threshold"]
    for shape in (None, WHOLE, {"kind": "circle", "cx": 96, "cy": 96, "r": 500}):
        assert infer(api, good(500), shape)["threshold"] == calibrated
    answer_of(api.fit([good(seed) for seed in range(N_OK)], mm_per_px=str(MM_PER_PX), shape=RING, mode="replace"))
    calibrated = calibrate(api)["threshold"]
    for shape in (None, WHOLE, RING):
        assert infer(api, good(500), shape)["threshold"] == calibrated


def test_heat_map_and_regions_are_on_the_threshold_under_the_shape(api: Api) -> None:
    calibrate(api, score_mode="area")
    answer = infer(api, defective(701, "pit"), RING)
    threshold = answer["threshold"]
    assert answer["params"]["heatmap_scale"] == pytest.approx(2 * threshold)
    assert answer["decision"] == "ng"
    assert answer["regions"]
    shown = heatmap_of(answer)
    for region in answer["regions"]:
        assert region["peak"] > threshold
        x, y, w, h = region["bbox"]
        assert shown[y : y + h, x : x + w].max() >= 128


def upload(api: Api, label: str, images: list[bytes], meta: str = '{"mm_per_px":0.4}') -> None:
    files = [("images", (f"{label}-{n}.png", data, "image/png")) for n, data in enumerate(images)]
    metas = [("metas", (None, meta, "application/json")) for _ in images]
    answer_of(api.client.post(f"/datasets/{label}/upload", data=NAMED, files=[*files, *metas]))


def test_stored_bad_images_are_scored_under_the_ring_too(api: Api) -> None:
    bad = [defective(800 + n, "rust") for n in range(2)]
    alone = calibrate(api, score_mode="area")
    without = infer(api, good(500), RING)["threshold"]
    upload(api, "ng", bad)
    calibrated = calibrate(api, score_mode="area")
    assert (calibrated["n_ng"], alone["n_ng"]) == (2, 0)
    under_ring = [infer(api, image, RING) for image in bad]
    assert without < under_ring[0]["threshold"] < min(answer["score"] for answer in under_ring)
    assert infer(api, good(500), RING)["threshold"] == under_ring[0]["threshold"]


def test_a_bad_image_whose_defect_lies_outside_the_shape_says_nothing_of_it(api: Api) -> None:
    calibrate(api, score_mode="area")
    hub = {"kind": "circle", "cx": (PX - 1) / 2, "cy": (PX - 1) / 2, "r": 30}
    without = infer(api, good(500), hub)["threshold"]
    upload(api, "ng", [defective(800 + n, "rust") for n in range(2)])  # on the face, around the hub
    assert calibrate(api, score_mode="area")["n_ng"] == 2
    assert infer(api, good(500), hub)["threshold"] == without


@pytest.mark.parametrize("fields", [{"ok_scores": [0.3, 0.4]}, {"ng_scores": [1.0]}, {"threshold": 0.5}], ids=str)
def test_a_threshold_that_the_stored_images_cannot_make_stays_with_a_warning(api: Api, fields: dict[str, Any]) -> None:
    calibrated = calibrate(api, **fields)["threshold"]
    whole, ring = infer(api, good(500)), infer(api, good(500), RING)
    assert whole["threshold"] == ring["threshold"] == calibrated
    assert any("same under every shape" in text for text in ring["warnings"])
    assert not any("same under every shape" in text for text in whole["warnings"])


def test_a_data_set_of_ringed_images_is_judged_by_the_ring_and_whole_images_by_the_whole(api: Api) -> None:
    meta = json.dumps({"mm_per_px": MM_PER_PX, "shape_json": json.dumps(RING)})
    upload(api, "ok", [good(seed) for seed in range(N_OK)], meta)
    whole, ring = calibrate(api)["threshold"], infer(api, good(500), RING)["threshold"]
    by_dataset = answer_of(api.client.post("/calibrate_dataset", json=NAMED))
    assert by_dataset["threshold"] == pytest.approx(ring, rel=1e-5)
    assert infer(api, good(500), RING)["threshold"] == by_dataset["threshold"]
    assert infer(api, good(500))["threshold"] == pytest.approx(whole, rel=1e-5)
    items = answer_of(api.client.post("/infer_dataset", json=NAMED))["items"]
    assert {item["threshold"] for item in items} == {by_dataset["threshold"]}


def test_it_survives_a_restart_and_is_the_same_for_many_at_once(api: Api) -> None:
    upload(api, "ng", [defective(800, "rust")])
    calibrate(api)
    rings = [{**RING, "r": RING["r"] - step} for step in range(40)]
    image = good(500)
    with ThreadPoolExecutor(4) as pool:
        first = list(pool.map(lambda ring: infer(api, image, ring, heatmap="none")["threshold"], [*rings, *rings]))
    assert first[:40] == first[40:]
    with running_app(api.models, input_size=192) as restarted:
        assert infer(restarted, image, rings[7])["threshold"] == first[7]


@pytest.mark.parametrize("edge", [26, 40])
def test_a_shape_of_few_cells_has_a_threshold_too(api: Api, edge: int) -> None:
    calibrate(api, score_mode="max")
    spot = {"kind": "rect", "x": 120, "y": 70, "w": edge, "h": edge}
    answers = [infer(api, good(seed), spot) for seed in range(N_OK)]
    assert answers[0]["threshold"] == pytest.approx(max(answer["score"] for answer in answers), rel=1e-5)


def with_a_lively_label(seed: int) -> bytes:
    """Return a calm plate with a label of 28×28 px that is another one on every part."""
    image = plate(seed, (PX, PX))
    label = np.random.default_rng([seed, 5]).integers(60, 200, (7, 7)).astype(np.uint8)
    image[60:88, 100:128] = cv2.resize(label, (28, 28), interpolation=cv2.INTER_NEAREST)[:, :, None]
    return encode_png(image)


def test_a_shape_around_what_varies_is_not_judged_by_the_calm_rest(tmp_path: Path) -> None:
    shape = {"kind": "rect", "x": 96, "y": 56, "w": 36, "h": 36}
    with running_app(tmp_path / "models", input_size=192) as api:
        answer_of(api.fit([with_a_lively_label(seed) for seed in range(20)], mm_per_px=str(MM_PER_PX), aligned="no"))
        whole = calibrate(api, score_mode="percentile", score_percentile=95)["threshold"]
        answers = [infer(api, with_a_lively_label(100 + seed), shape, heatmap="none") for seed in range(12)]
    assert sum(answer["score"] > whole for answer in answers) >= 10
    assert sum(answer["decision"] == "ng" for answer in answers) <= 2
