"""An image that is none of the part is never ok: lamp out, cap on, defocused, another part, wrong bit depth."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.demo.samples import machined_ring, render_defective, render_good
from backend.roi_mask import shape_fields
from tests.testkit.app import Api, answer_of, running_app
from tests.testkit.fakes import encoded, plate

Image = NDArray[np.uint8]
SIZE_PX = 192
RING = shape_fields(machined_ring(SIZE_PX))
RNG = np.random.default_rng(0)


def part(seed: int) -> Image:
    return render_good(seed, size_px=SIZE_PX, mm_per_px=0.4).image_bgr


GOOD = [encoded(part(seed)) for seed in range(14)]
UNSEEN = [part(seed) for seed in range(100, 106)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("image-check") / "models"


@pytest.fixture(scope="module")
def api(models: Path) -> Iterator[Api]:
    with running_app(models, input_size=192) as started:
        answer_of(started.fit(GOOD))
        answer_of(started.calibrate())
        yield started


def exposed(factor: float) -> Callable[[Image], Image]:
    return lambda image: np.clip(image * factor, 0, 255).astype(np.uint8)


def brighter(levels: int) -> Callable[[Image], Image]:
    return lambda image: np.clip(image.astype(int) + levels, 0, 255).astype(np.uint8)


def defocused(share_of_edge: float) -> Callable[[Image], Image]:
    return lambda image: cv2.GaussianBlur(image, (0, 0), share_of_edge * len(image)).astype(np.uint8)


def with_bottom(value: int) -> Callable[[Image], Image]:
    def spoiled(image: Image) -> Image:
        image = image.copy()
        image[len(image) // 2 :] = value
        return image

    return spoiled


def mono12_in_16_bit(image: Image) -> NDArray[np.uint16]:
    return (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.uint16) << 4) + 8


NO_IMAGE_OF_THE_PART: dict[str, Callable[[Image], NDArray[Any]]] = {
    "black": np.zeros_like,
    "white": lambda image: np.full_like(image, 255),
    "grey": lambda image: np.full_like(image, 128),
    "its own mean grey": lambda image: np.full_like(image, round(image.mean())),
    "noise": lambda image: RNG.integers(0, 256, image.shape, np.uint8),
    "lens cap": lambda image: np.abs(RNG.normal(2, 2, image.shape)).astype(np.uint8),
    "lower half black": with_bottom(0),
    "lower half grey": with_bottom(128),
    "exposure × 0.4": exposed(0.4),
    "exposure × 2.5": exposed(2.5),
    "defocused": defocused(1 / 75),
    "negative": lambda image: 255 - image,
    "another part": lambda image: plate(1, image.shape[:2]),
    "12 bit in 16": mono12_in_16_bit,
}


@pytest.mark.parametrize("kind", NO_IMAGE_OF_THE_PART)
def test_what_is_no_image_of_the_part_is_ng_for_a_client_that_only_compares_score_and_threshold(
    api: Api, kind: str
) -> None:
    for image in UNSEEN[:3]:
        answer = answer_of(api.infer(encoded(NO_IMAGE_OF_THE_PART[kind](image))))
        assert answer["score"] > answer["threshold"]
        assert (answer["decision"], answer["reject_reason"]) == ("ng", "image")
        assert answer["params"]["measured_score"] <= answer["score"]
        assert answer["image_check"]["verdict"] == "foreign"
        assert answer["warnings"][0].startswith("The image ")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: image, id="unchanged"),
        pytest.param(exposed(0.9), id="exposure × 0.9"),
        pytest.param(exposed(1.1), id="exposure × 1.1"),
        pytest.param(brighter(2), id="+ 2 levels"),
        pytest.param(brighter(-2), id="- 2 levels"),
        pytest.param(defocused(1 / 400), id="slightly defocused"),
    ],
)
def test_a_good_part_is_not_rejected_for_its_image(api: Api, change: Callable[[Image], Image]) -> None:
    for image in UNSEEN:
        answer = answer_of(api.infer(encoded(change(image))))
        assert answer["image_check"]["verdict"] != "foreign"
        assert answer["reject_reason"] != "image"


def test_a_defect_is_a_defect_and_no_fault_of_the_image(api: Api) -> None:
    for kind in ("pit", "scratch", "rust", "dent", "chipped_edge"):
        image = render_defective(200, kind, size_px=SIZE_PX, mm_per_px=0.4).image_bgr
        answer = answer_of(api.infer(encoded(image)))
        assert answer["image_check"]["verdict"] != "foreign", kind
        assert answer["reject_reason"] == {"ng": "defect", "ok": None}[answer["decision"]]


def test_the_operator_reads_the_grey_levels(api: Api) -> None:
    answer = answer_of(api.infer(encoded(exposed(0.2)(UNSEEN[0]))))
    level = answer["image_check"]["statistics"]["level"]
    assert level["distance"] < -2
    assert f"(grey level {level['value']:.0f}, learned {level['low']:.0f}–{level['high']:.0f})" in answer["warnings"][0]


def test_the_check_is_of_the_area_that_counts(api: Api) -> None:
    """What lies beside the ring may change: it was said not to count."""
    image = UNSEEN[0].copy()
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX] - SIZE_PX / 2
    image[np.hypot(rows, columns) > SIZE_PX / 2] = 255
    image[np.hypot(rows, columns) < 0.2 * SIZE_PX / 2] = 255
    assert answer_of(api.infer(encoded(image)))["image_check"]["distance"] > 2
    assert answer_of(api.infer(encoded(image), shape=RING))["image_check"]["verdict"] != "foreign"


def test_a_binned_image_is_no_defocused_one(api: Api) -> None:
    for image in UNSEEN[:2]:
        binned = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        answer = answer_of(api.infer(encoded(binned), mm_per_px=0.2))
        assert answer["image_check"]["verdict"] == "ok"


@pytest.mark.parametrize(("mode", "reason"), [("warn", None), ("off", None)])
def test_the_check_can_warn_only_or_be_left_out(
    models: Path, tmp_path: Path, api: Api, mode: str, reason: None
) -> None:
    copied = tmp_path / "models"
    shutil.copytree(models, copied)
    with running_app(copied, input_size=192, image_check=mode) as other:
        answer = answer_of(other.infer(encoded(np.zeros_like(UNSEEN[0]))))
    assert answer["reject_reason"] != "image"
    assert answer["score"] == answer["params"]["measured_score"]
    assert (answer["image_check"] is None) == (mode == "off")
    assert any("shows nothing of a part" in sentence for sentence in answer["warnings"]) == (mode == "warn")


def test_without_a_calibration_there_is_no_decision_but_a_warning(api: Api) -> None:
    answer_of(api.fit(GOOD, roi_id="uncalibrated"))
    answer = answer_of(api.infer(encoded(np.zeros_like(UNSEEN[0])), roi_id="uncalibrated"))
    assert (answer["decision"], answer["reject_reason"], answer["threshold"]) == (None, None, None)
    assert answer["score"] == answer["params"]["measured_score"]
    assert "shows nothing of a part" in answer["warnings"][0]


def test_a_fit_names_the_image_that_does_not_belong_and_still_rejects_its_like(api: Api) -> None:
    spoiled = encoded(exposed(0.15)(part(50)))
    fitted = answer_of(api.fit([*GOOD, spoiled], roi_id="with-a-dark-one"))
    (sentence,) = [text for text in fitted["warnings"] if "unlike the others" in text]
    assert "1 of the 15 good images is unlike" in sentence
    assert "darker" in sentence
    assert not [text for text in answer_of(api.fit(GOOD, roi_id="without"))["warnings"] if "unlike the others" in text]
    answer_of(api.calibrate(roi_id="with-a-dark-one"))
    answer = answer_of(api.infer(encoded(exposed(0.15)(part(60))), roi_id="with-a-dark-one"))
    assert (answer["decision"], answer["reject_reason"]) == ("ng", "image")


@pytest.mark.parametrize("n_images", [1, 2])
def test_a_roi_of_one_image_or_two_is_not_nervous(api: Api, n_images: int) -> None:
    roi = f"few-{n_images}"
    answer_of(api.fit(GOOD[:n_images], roi_id=roi))
    answer_of(api.calibrate(roi_id=roi, ok_scores=[0.3, 0.4]))
    for change in (exposed(0.9), exposed(1.1), brighter(2), brighter(-2), defocused(1 / 400)):
        answer = answer_of(api.infer(encoded(change(part(0))), roi_id=roi))
        assert answer["image_check"]["verdict"] != "foreign"
    answer = answer_of(api.infer(encoded(np.zeros_like(UNSEEN[0])), roi_id=roi))
    assert (answer["decision"], answer["reject_reason"]) == ("ng", "image")


def test_a_data_set_run_says_why_as_well(api: Api) -> None:
    roi = {"roi_id": "with-bad-images"}
    answer_of(api.fit(GOOD, **roi))
    answer_of(api.calibrate(**roi))
    files = [("images", ("dark.png", encoded(np.zeros_like(UNSEEN[0])), "image/png"))]
    form = {"role_id": "Inspection", **roi, "metas": '{"mm_per_px": 0.2}'}
    answer_of(api.client.post("/datasets/ng/upload", data=form, files=files))
    body = {"role_id": "Inspection", **roi, "labels": ["ng"]}
    (item,) = answer_of(api.client.post("/infer_dataset", json=body))["items"]
    assert (item["decision"], item["reject_reason"]) == ("ng", "image")
