"""What a fit says of the images that it learns: bad ones among the good, one part many times, a changed threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.demo.part_defects import DEFECT_KINDS, DefectKind
from backend.demo.samples import render_defective, render_good
from tests.testkit.app import MM_PER_PX, Api, answer_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

Image = NDArray[np.uint8]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models") as started:
        yield started


@pytest.fixture(scope="module")
def at_full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service with the usual size of the network input."""
    with running_app(tmp_path_factory.mktemp("full") / "models", input_size=384) as started:
        yield started


@pytest.fixture(scope="module")
def good_alone(at_full_size: Api) -> dict[str, Any]:
    """The answer to a fit of twenty good parts."""
    return answer_of(at_full_size.fit([encoded(image) for image in GOOD], roi_id="good"))


GOOD = [render_good(seed).image_bgr for seed in range(20)]


def frames(image: Image, n: int, *, noise: float = 2.0, first: int = 0) -> list[bytes]:
    """Return photographs of one part: the camera's noise is all that differs."""
    found = []
    for seed in range(first, first + n):
        seen = image + np.random.default_rng([seed, 7]).normal(0, noise, image.shape)
        found.append(encoded(np.clip(np.rint(seen), 0, 255).astype(np.uint8)))
    return found


def marked(seed: int) -> bytes:
    """Return a bad plate: a part of it is broken."""
    return encoded(with_defect(plate(seed), (30, 30, 36, 36), 90))


def fit_named(api: Api, images: Sequence[tuple[str, bytes]], **fields: Any) -> dict[str, Any]:
    form = {"role_id": ROLE, "roi_id": ROI, "mm_per_px": str(MM_PER_PX), **fields}
    files = [("images", (name, data, "image/png")) for name, data in images]
    return answer_of(api.client.post("/fit_ok", data=form, files=files))


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_one_bad_part_among_twenty_good_ones_is_named(
    at_full_size: Api, good_alone: dict[str, Any], kind: DefectKind
) -> None:
    bad = render_defective(1000, kind).image_bgr
    images = [*((f"good{n}.png", encoded(image)) for n, image in enumerate(GOOD)), ("doubtful.png", encoded(bad))]
    answer = fit_named(at_full_size, images, roi_id=f"bad-{kind}")
    (suspect,) = answer["suspects"]
    assert suspect["name"] == f"doubtful-{suspect['digest'][:12]}.png"
    assert suspect["times_median"] > 1.3
    assert suspect["score"] <= answer["ok_scores"]["max"]
    without = good_alone["suggested_threshold"]
    assert answer["threshold_without_suspects"] == pytest.approx(without, rel=0.05)
    assert answer["suggested_threshold"] > 1.1 * without
    assert any(suspect["name"] in text and "stands out" in text for text in answer["warnings"])
    calibrated = answer_of(at_full_size.calibrate(roi_id=f"bad-{kind}"))
    assert any(suspect["name"] in text for text in calibrated["warnings"])


def test_good_parts_alone_are_not_suspected(good_alone: dict[str, Any]) -> None:
    found = [good_alone[name] for name in ("suspects", "threshold_without_suspects", "near_identical")]
    assert found == [[], None, []]


def test_a_bad_image_is_deleted_by_the_name_that_the_answer_gave(api: Api) -> None:
    answer = answer_of(api.fit([*plates(range(1000, 1020)), marked(50)]))
    (suspect,) = answer["suspects"]
    query = {"role_id": ROLE, "roi_id": ROI, "label": "ok", "filename": suspect["name"]}
    assert answer_of(api.client.delete("/datasets/file", params=query))["deleted"] is True
    again = answer_of(api.fit([], use_dataset="true"))
    assert (again["n_ok_total"], again["suspects"]) == (20, [])
    assert again["suggested_threshold"] < 0.8 * answer["suggested_threshold"]


def test_a_renewal_that_changes_the_threshold_says_from_what_to_what_and_because_of_whom(api: Api) -> None:
    answer_of(api.fit(plates(range(20))))
    before = answer_of(api.calibrate())["threshold"]
    answer = answer_of(api.fit([marked(50)]))
    (suspect,) = answer["suspects"]
    assert answer["calibration"] == "renewed"
    assert answer["threshold"] > 1.1 * before
    (text,) = [text for text in answer["warnings"] if "threshold was renewed" in text]
    for part in (f"{before:.4g}", f"{answer['threshold']:.4g}", suspect["name"], "stand out"):
        assert part in text
    manifest = answer_of(api.client.get("/manifest", params={"role_id": ROLE, "roi_id": ROI}))
    assert text in manifest["calib"]["warnings"]


def test_a_renewal_by_images_that_do_not_stand_out_names_the_largest_or_the_counts(api: Api) -> None:
    calm = [np.clip(plate(seed) * 0.5 + plate(0) * 0.5, 0, 255).astype(np.uint8) for seed in range(100, 110)]
    answer_of(api.fit([encoded(image) for image in calm]))
    before = answer_of(api.calibrate())["threshold"]
    answer = answer_of(api.fit(plates(range(1, 11))))
    (text,) = [text for text in answer["warnings"] if "threshold was renewed" in text]
    assert f"from {before:.4g} to {answer['threshold']:.4g}" in text
    assert "the largest score is that of a new image, good-" in text
    assert "it rests on 20 good parts now, before on 10" in text
    back = answer_of(api.fit([encoded(image) for image in calm], mode="replace"))
    assert any("threshold was renewed" in text and "are no longer in it" in text for text in back["warnings"])


def test_a_renewal_that_changes_little_says_nothing(api: Api) -> None:
    answer_of(api.fit(plates(range(20))))
    before = answer_of(api.calibrate())["threshold"]
    answer = answer_of(api.fit(plates([20])))
    assert answer["threshold"] == pytest.approx(before, rel=0.1)
    assert not any("threshold was renewed" in text for text in answer["warnings"])


def test_frames_of_one_part_promise_nothing_whatever_their_number(api: Api) -> None:
    answer = answer_of(api.fit(frames(plate(0), 25)))
    assert (answer["n_ok_total"], answer["n_parts"]) == (25, 1)
    (group,) = answer["near_identical"]
    assert len(set(group)) == 25
    assert any("25 of 25 images are near-identical" in text for text in answer["warnings"])
    assert answer["ok_scores"]["n"] == 25
    calibrated = answer_of(api.calibrate())
    assert calibrated["threshold"] > 0
    assert calibrated["n_ok"] == 1
    assert (calibrated["expected_false_alarm_rate"], calibrated["false_alarm_rate_upper_95"]) == (1.0, 1.0)
    assert any("nothing is promised about other parts" in text for text in calibrated["warnings"])


def test_frames_among_real_parts_count_once_and_are_left_out_together(api: Api) -> None:
    answer = answer_of(api.fit([*plates(range(20)), *frames(plate(0), 15)]))
    assert (answer["n_ok_total"], answer["n_parts"]) == (35, 20)
    calibrated = answer_of(api.calibrate())
    assert calibrated["n_ok"] == 20
    assert calibrated["expected_false_alarm_rate"] == pytest.approx(1 / 21)
    # Together: each frame scores as a part that nobody has seen, and not as one that its twins have shown.
    frame, part = (answer_of(api.infer(image))["score"] for image in (frames(plate(0), 1)[0], plates([1])[0]))
    assert frame > 0.7 * part
    alarms = [answer_of(api.infer(image))["decision"] for image in plates(range(100, 140))].count("ng")
    assert alarms <= 6  # 1 in 21 expected


def test_what_the_client_says_of_its_parts_goes_before_what_is_seen(api: Api) -> None:
    images = frames(plate(0), 10)
    answer = answer_of(api.fit(images, part_id=[f"part-{n}" for n in range(10)]))
    assert (answer["n_parts"], answer["near_identical"]) == (10, [])
    assert answer_of(api.calibrate())["n_ok"] == 10
    said_later = answer_of(api.fit(images, roi_id="later"))
    assert said_later["n_parts"] == 1
    said_later = answer_of(api.fit(images, roi_id="later", part_id=[f"part-{n}" for n in range(10)]))
    assert (said_later["n_parts"], said_later["n_duplicates"]) == (10, 10)


def test_the_same_images_in_other_orders_and_calls_are_the_same_memory(api: Api) -> None:
    images = [*plates(range(6)), *frames(plate(0), 3), *frames(plate(1), 3)]
    at_once = answer_of(api.fit(images, roi_id="at-once"))
    assert sorted(len(group) for group in at_once["near_identical"]) == [4, 4]
    for call in (images[9:], images[3:8], images[:4], images[::-1]):
        last = answer_of(api.fit(call, roi_id="in-steps"))
    assert last["checksum"] == at_once["checksum"]
    digits = [
        sorted([name.rpartition("-")[2] for name in group] for group in answer["near_identical"])
        for answer in (last, at_once)
    ]
    assert digits[0] == digits[1]


def upload(api: Api, images: Sequence[bytes]) -> None:
    files = [("images", (f"good{n}.png", data, "image/png")) for n, data in enumerate(images)]
    metas = [("metas", (None, f'{{"mm_per_px": {MM_PER_PX}}}', "application/json")) for _ in images]
    answer_of(api.client.post("/datasets/ok/upload", data={"role_id": ROLE, "roi_id": ROI}, files=[*files, *metas]))


def calibrate_dataset(api: Api) -> dict[str, Any]:
    body = {"role_id": ROLE, "roi_id": ROI, "default_mm_per_px": MM_PER_PX}
    return answer_of(api.client.post("/calibrate_dataset", json=body))


def test_a_data_set_of_frames_is_calibrated_by_its_parts(api: Api) -> None:
    upload(api, [*plates(range(7)), *frames(plate(0), 8)])
    assert answer_of(api.fit([], use_dataset="true"))["n_parts"] == 7
    assert calibrate_dataset(api)["n_ok"] == 7


def test_frames_that_were_not_learned_are_no_further_parts_of_a_data_set(api: Api) -> None:
    answer_of(api.fit(plates(range(7))))
    upload(api, [*plates([7]), *frames(plate(0), 5), *frames(plate(8), 5)])
    answer = calibrate_dataset(api)
    assert answer["n_ok"] == 9
    assert answer["expected_false_alarm_rate"] == pytest.approx(1 / 10)


def test_a_refit_names_them_as_well(api: Api) -> None:
    fitted = answer_of(api.fit([*plates(range(20)), marked(50), *frames(plate(0), 4)]))
    (suspect,) = fitted["suspects"]
    answer = answer_of(api.client.post("/refit", json={"role_id": ROLE, "roi_id": ROI, "force": True}))
    warnings = answer["items"][0]["warnings"]
    assert any(suspect["name"] in text for text in warnings)
    assert any("near-identical" in text for text in warnings)
    manifest = answer_of(api.client.get("/manifest", params={"role_id": ROLE, "roi_id": ROI}))
    assert (manifest["fit"]["n_parts"], manifest["fit"]["checksum"]) == (21, fitted["checksum"])
