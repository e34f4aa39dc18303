"""``POST /infer_dataset`` and ``POST /calibrate_dataset``, over real sockets, as the published client calls them."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.imaging.image_codec import decode_image
from tests.testkit.client import Client, png
from tests.testkit.fakes import defective_image, encoded, good_image


def _folder(client: Client, label: str = "ok") -> Path:
    return client.models_dir / client.role_id / client.roi_id / "images" / label


# --- /infer_dataset ---------------------------------------------------------------------------------------------------


def test_a_data_set_is_inspected_image_by_image_as_infer_would(fitted: Client) -> None:
    fitted.calibrate().ok()
    answer = fitted.dataset("/infer_dataset").ok()
    assert (answer["status"], answer["n_total"], answer["n_errors"]) == ("ok", 6, 0)
    assert [(item["label"], item["filename"]) for item in answer["items"]] == [
        *(("ok", name) for name in fitted.files("ok")),
        *(("ng", name) for name in fitted.files("ng")),
    ]
    for item in answer["items"]:
        data = fitted.about("/datasets/file", label=item["label"], filename=item["filename"]).body
        alone = fitted.infer(data).ok()
        for field in ("score", "threshold", "decision", "regions"):
            assert item[field] == alone[field], field
        assert item["mm_per_px"] == 0.2
        assert item["n_regions"] == len(item["regions"])
        assert item["error"] is None


def test_learned_images_are_scored_without_themselves(fitted: Client) -> None:
    fitted.upload("ok", [png(80)]).ok()  # good, but not learned
    items = fitted.dataset("/infer_dataset").ok()["items"]
    scoring = {item["filename"]: item["scoring"] for item in items}
    unlearned = [name for name, how in scoring.items() if how == "new"]
    assert sorted(scoring.values()) == ["leave_one_out"] * 5 + ["new"] * 2
    assert set(unlearned) >= set(fitted.files("ng"))
    assert all(item["score"] > 0 for item in items)


def test_an_uncalibrated_data_set_has_scores_and_no_decisions(fitted: Client) -> None:
    items = fitted.dataset("/infer_dataset").ok()["items"]
    for item in items:
        assert (item["threshold"], item["decision"], item["regions"], item["error"]) == (None, None, [], None)
    (bad,) = [item["score"] for item in items if item["label"] == "ng"]
    assert bad > max(item["score"] for item in items if item["label"] == "ok") > 0


def test_labels_choose_the_classes_and_no_image_is_inspected_twice(fitted: Client) -> None:
    both = {"ok": 5, "ng": 1}
    for labels, expected in ((None, both), (["ok", "ng"], both), (["ng"], {"ng": 1}), (["ok", "ok"], {"ok": 5})):
        answer = fitted.dataset("/infer_dataset", labels=labels).ok()
        assert Counter(item["label"] for item in answer["items"]) == expected
        assert answer["n_total"] == sum(expected.values())
    for unknown in (["other"], "ok", [1], ["ok", "ng", "ok"]):
        assert "labels" in fitted.dataset("/infer_dataset", labels=unknown).ok(422)["error"]


def test_heat_maps_come_only_where_asked_for(fitted: Client) -> None:
    without = fitted.dataset("/infer_dataset", include_heatmap=False).ok()["items"]
    assert [item["heatmap_png_base64"] for item in without] == [None] * 6
    for item in fitted.dataset("/infer_dataset", include_heatmap=True).ok()["items"]:
        decoded = decode_image(base64.b64decode(item["heatmap_png_base64"]), max_pixels=10_000)
        assert decoded.shape[:2] == (64, 64)


def test_the_scale_is_the_image_s_own_else_the_default_else_the_roi_s(client: Client) -> None:
    client.fit([png(1), png(2)]).ok()
    client.upload("ng", [png(3)], [{"mm_per_px": 0.2}]).ok()
    client.upload("ng", [png(4)]).ok()
    errors = [item["error"] for item in client.dataset("/infer_dataset", default_mm_per_px=0.5).ok()["items"]]
    assert sum(error is not None for error in errors) == 1
    assert "0.5" in next(error for error in errors if error)
    assert client.dataset("/infer_dataset", default_mm_per_px=None).ok()["n_errors"] == 0
    assert client.dataset("/infer_dataset", default_mm_per_px=0.2).ok()["n_errors"] == 0
    assert "default_mm_per_px" in client.dataset("/infer_dataset", default_mm_per_px=0).ok(422)["error"]


@pytest.mark.parametrize("field", ["shape", "shape_json"])
def test_a_shape_that_makes_no_sense_is_an_error_of_its_image_alone(fitted: Client, field: str) -> None:
    circles = [{"kind": "circle", "cx": "a"}, {"kind": "circle", "cx": 0, "cy": 0, "r": -1}]
    metas = [{field: shape} for shape in (5, [1, 2], "{", {"kind": "hexagon"}, *circles)]
    saved = fitted.upload("ng", [png(90 + n) for n in range(len(metas))], metas).ok()["saved"]
    items = fitted.dataset("/infer_dataset").ok()["items"]
    assert {item["filename"] for item in items if item["error"]} == set(saved)


@pytest.mark.parametrize("field", ["shape", "shape_json"])
@pytest.mark.parametrize("as_text", [False, True])
def test_the_shape_in_an_image_s_metadata_is_what_counts(fitted: Client, field: str, as_text: bool) -> None:
    corner = {"kind": "rect", "x": 0, "y": 0, "w": 16, "h": 16}  # the defect lies in the middle
    data = encoded(defective_image(98))
    sent = json.dumps(corner) if as_text else corner
    (name,) = fitted.upload("ng", [data], [{"shape": None, "shape_json": None, field: sent}]).ok()["saved"]
    scores = {item["filename"]: item["score"] for item in fitted.dataset("/infer_dataset").ok()["items"]}
    assert scores[name] == pytest.approx(fitted.infer(data, shape=json.dumps(corner)).ok()["score"])
    assert scores[name] < fitted.infer(data).ok()["score"]


def test_an_image_of_another_aspect_ratio_is_an_error_of_its_own(fitted: Client) -> None:
    wide = encoded(good_image(1, image_hw=(64, 128)))
    (name,) = fitted.upload("ng", [wide]).ok()["saved"]
    answer = fitted.dataset("/infer_dataset").ok()
    assert [item["filename"] for item in answer["items"] if item["error"]] == [name]


# --- /calibrate_dataset -----------------------------------------------------------------------------------------------


def test_calibrating_from_a_data_set_sets_the_threshold_that_its_scores_call_for(fitted: Client) -> None:
    answer = fitted.dataset("/calibrate_dataset").ok()
    items = fitted.dataset("/infer_dataset").ok()["items"]
    scores = {label: [item["score"] for item in items if item["label"] == label] for label in ("ok", "ng")}
    by_hand = fitted.calibrate(ok_scores=scores["ok"], ng_scores=scores["ng"]).ok()
    assert answer["status"] == "ok"
    assert (answer["n_ok"], answer["n_ng"]) == (5, 1)
    for field in (
        "threshold",
        "p99_ok",
        "p5_ng",
        "ok_mean",
        "ng_mean",
        "score_percentile",
        "area_mm2_thr",
        "score_mode",
    ):
        assert answer[field] == pytest.approx(by_hand[field]), field
    assert answer["ok_scores_from"] == "dataset"
    assert answer["failed"] == []


@pytest.mark.parametrize(
    ("fields", "mode"),
    [({}, "area"), ({"score_percentile": 97}, "percentile"), ({"score_mode": "top_mean"}, "top_mean")],
)
def test_the_first_calibration_of_a_data_set_takes_the_area_unless_it_names_another_score(
    fitted: Client, fields: dict[str, Any], mode: str
) -> None:
    answer = fitted.dataset("/calibrate_dataset", **fields).ok()
    assert (answer["score_mode"], fitted.about("/manifest").ok()["calib"]["score_mode"]) == (mode, mode)
    ok = [item for item in fitted.dataset("/infer_dataset").ok()["items"] if item["label"] == "ok"]
    assert max(item["score"] for item in ok) == pytest.approx(answer["p99_ok"])


def test_an_item_whose_regions_contradict_its_decision_says_so(fitted: Client) -> None:
    fitted.dataset("/calibrate_dataset", score_mode="percentile", area_mm2_thr=1e5).ok()
    items = fitted.dataset("/infer_dataset").ok()["items"]
    assert any(item["decision"] == "ng" for item in items)
    for item in items:
        assert bool(item["warnings"]) == (item["decision"] == "ng")


def test_the_calibration_is_in_force_at_once(fitted: Client) -> None:
    threshold = fitted.dataset("/calibrate_dataset", area_mm2_thr=2.5, score_percentile=97).ok()["threshold"]
    calib = fitted.about("/manifest").ok()["calib"]
    assert (calib["threshold"], calib["area_mm2_thr"], calib["score_percentile"]) == (threshold, 2.5, 97)
    inspected = fitted.dataset("/infer_dataset").ok()["items"]
    assert {item["threshold"] for item in inspected} == {threshold}
    assert [item["decision"] for item in inspected] == ["ok"] * 5 + ["ng"]


def test_ng_images_can_be_required(client: Client) -> None:
    client.fit([png(1), png(2), png(3)]).ok()
    assert "ng" in client.dataset("/calibrate_dataset", require_ng=True).ok(422)["error"]
    assert client.about("/state").ok()["calib_present"] is False
    answer = client.dataset("/calibrate_dataset", require_ng=False).ok()
    assert (answer["n_ng"], answer["p5_ng"], answer["ng_mean"]) == (0, None, 0.0)


def test_images_that_could_not_take_part_in_a_calibration_are_named(fitted: Client) -> None:
    victim = sorted(_folder(fitted).glob("*.json"))[1]
    victim.with_suffix(".png").unlink()
    answer = fitted.dataset("/calibrate_dataset").ok()
    assert answer["n_ok"] == 4
    (failed,) = answer["failed"]
    assert failed["label"] == "ok"
    assert victim.stem[:12] in failed["filename"]
    assert failed["error"]


def test_a_calibration_that_fails_for_every_image_says_why(fitted: Client) -> None:
    fitted.upload("ok", [png(1)], [{"mm_per_px": 0.2}]).ok()
    fitted.delete("/datasets/clear", label="ok").ok()
    fitted.upload("ok", [png(seed) for seed in range(5)]).ok()
    body = fitted.dataset("/calibrate_dataset", default_mm_per_px=0.7).ok(422)
    assert "0.7" in body["error"]


def test_images_of_one_part_count_once(client: Client) -> None:
    data = [encoded(np.roll(good_image(1), n, axis=1)) for n in range(3)]
    client.upload("ok", data, [{"part_id": "one"}] * 3).ok()
    client.upload("ok", [png(7), png(8)]).ok()
    client.fit(use_dataset=True).ok()
    assert client.dataset("/calibrate_dataset").ok()["n_ok"] == 3


def test_a_data_set_without_good_images_cannot_calibrate(fitted: Client) -> None:
    fitted.delete("/datasets/clear", label="ok").ok()
    body = fitted.dataset("/calibrate_dataset").ok(422)
    assert body["details"]["ok_parts"] == 0
