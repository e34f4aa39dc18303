import base64

import cv2
import numpy as np
import pytest

from backend.demo.demo_parts import Part
from backend.demo.inspected import Inspected, tally
from tests.testkit.fakes import inspected


@pytest.mark.parametrize(
    ("is_defective", "decision", "outcome"),
    [
        (False, "ok", "passed"),
        (False, "ng", "false alarm"),
        (True, "ok", "missed"),
        (True, "ng", "found"),
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
    heatmap = np.arange(600).reshape(20, 30).astype(np.uint8)
    answer = {
        "score": 0.7,
        "threshold": 0.5,
        "decision": "ng",
        "heatmap_png_base64": base64.b64encode(cv2.imencode(".png", heatmap)[1].tobytes()).decode(),
        "regions": [{"contour": [[1, 2], [3, 2], [3, 4]], "area_mm2": 0.24}],
        "timings_ms": {"extract": 20.0, "total": 31.5},
    }
    part = Part(name="a", is_defective=True, image_bgr=np.zeros((20, 30, 3), np.uint8))
    item = Inspected.from_answer(answer, part, "shown only")
    assert (item.score, item.threshold, item.decision, item.elapsed_ms) == (0.7, 0.5, "ng", 31.5)
    assert (item.part, item.regions, item.note) == (part, answer["regions"], "shown only")
    assert (item.heatmap == heatmap).all()


@pytest.mark.parametrize(
    ("contours", "is_on"),
    [
        ([], False),
        ([[[10, 4], [14, 4], [14, 8]]], False),
        ([[[9, 7]]], True),
        ([[[2, 2], [20, 2], [20, 15], [2, 15]]], True),  # around the defect: the area counts, not the outline
        ([[[2, 2], [20, 2], [20, 15], [2, 15]], [[4, 4], [16, 4], [16, 13], [4, 13]]], True),  # one inside another
        ([[[25, 18]], [[7, 7], [9, 9]]], True),
    ],
)
def test_a_region_lies_on_the_defect_when_they_share_a_pixel(contours, is_on):
    defect = np.zeros((20, 30), np.bool_)
    defect[7:10, 8:10] = True
    regions = [{"contour": contour, "area_mm2": 1.0} for contour in contours]
    assert inspected(is_defective=True, defect_mask=defect, regions=regions).region_on_defect is is_on
    assert inspected(is_defective=True, regions=regions).region_on_defect is None


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


def test_the_tally_counts_regions_on_the_defects_that_are_found_and_whose_place_is_known():
    defect = np.eye(20, 30, dtype=np.bool_)
    on_it, beside_it = ({"contour": [[3, 3]], "area_mm2": 1.0},), ({"contour": [[25, 3]], "area_mm2": 1.0},)
    found = {"is_defective": True, "decision": "ng"}
    items = [
        inspected(**found, defect_mask=defect, regions=on_it),
        inspected(**found, defect_mask=defect, regions=beside_it),
        inspected(**found, regions=on_it),
        inspected(**found, defect_mask=defect, regions=on_it, note="set the threshold"),
        inspected(is_defective=True, defect_mask=defect, regions=on_it),
    ]
    counts = tally(items)
    assert (counts.n_found, counts.n_place_known, counts.n_on_defect) == (3, 2, 1)
