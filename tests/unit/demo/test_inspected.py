import base64

import cv2
import numpy as np
import pytest

from backend.demo.inspected import FoundRegion, Inspected, decode_heatmap, tally
from tests.testkit.fakes import inspected


def _png_base64(pixels):
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


def _answer(**changes):
    answer = {
        "score": 0.7,
        "threshold": 0.5,
        "decision": "ng",
        "heatmap_png_base64": _png_base64(np.full((20, 30), 128, np.uint8)),
        "regions": [{"contour": [[1, 2], [3, 2], [3, 4]], "area_mm2": 0.24}],
        "timings_ms": {"extract": 20.0, "total": 31.5},
    }
    return {**answer, **changes}


@pytest.mark.parametrize(
    ("is_defective", "decision", "outcome"),
    [
        (False, "ok", "passed"),
        (False, "ng", "false alarm"),
        (True, "ok", "missed"),
        (True, "ng", "found"),
        (True, None, "not judged"),
    ],
)
def test_the_outcome_weighs_the_decision_against_the_truth(is_defective, decision, outcome):
    assert inspected(is_defective=is_defective, decision=decision).outcome == outcome


def test_another_threshold_judges_again_and_a_score_on_it_is_ok():
    item = inspected(is_defective=True, score=0.5, threshold=0.6)
    assert item.judged_by(0.49).decision == "ng"
    assert item.judged_by(0.5).decision == "ok"
    assert item.judged_by(0.49).threshold == 0.49


def test_an_answer_becomes_an_inspected_image():
    image = np.zeros((20, 30, 3), np.uint8)
    item = Inspected.from_answer(_answer(), name="a", is_defective=True, image_bgr=image)
    assert (item.score, item.threshold, item.decision, item.elapsed_ms) == (0.7, 0.5, "ng", 31.5)
    assert item.regions == (FoundRegion(contour_xy=((1, 2), (3, 2), (3, 4)), area_mm2=0.24),)
    assert item.heatmap.shape == (20, 30)
    assert (item.heatmap == 128).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heatmap_png_base64": None}, "no heat map"),
        ({"heatmap_png_base64": base64.b64encode(b"text").decode()}, "is no image"),
        ({"heatmap_png_base64": _png_base64(np.zeros((20, 31), np.uint8))}, r"the heat map of a is \(20, 31\)"),
    ],
)
def test_an_answer_without_a_fitting_heat_map_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Inspected.from_answer(
            _answer(**changes), name="a", is_defective=True, image_bgr=np.zeros((20, 30, 3), np.uint8)
        )


def test_a_heat_map_survives_its_journey():
    heatmap = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (decode_heatmap(_png_base64(heatmap)) == heatmap).all()


def test_the_tally_sets_images_with_a_note_apart():
    items = [
        inspected(elapsed_ms=10.0),
        inspected(decision="ng", elapsed_ms=20.0),
        inspected(is_defective=True, decision="ng", elapsed_ms=30.0),
        inspected(is_defective=True, decision="ok", note="set the threshold", elapsed_ms=40.0),
    ]
    counts = tally(items)
    assert (counts.n_passed, counts.n_good, counts.n_found, counts.n_defective) == (1, 2, 1, 1)
    assert (counts.n_aside, counts.n_aside_right) == (1, 0)
    assert counts.median_ms == 25.0
