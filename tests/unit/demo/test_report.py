import base64
import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from backend.demo.report import (
    FoundRegion,
    Inspected,
    Report,
    decode_heatmap,
    paint_heatmap,
    render_report,
    score_histogram,
    tally,
    write_report,
)


def _png_base64(pixels):
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


def _inspected(**changes):
    values = {
        "name": "part",
        "is_defective": False,
        "image_bgr": np.full((20, 30, 3), 120, np.uint8),
        "heatmap": np.zeros((20, 30), np.uint8),
        "score": 0.4,
        "threshold": 0.5,
        "decision": "ok",
        "regions": (),
        "elapsed_ms": 10.0,
    }
    return Inspected(**{**values, **changes})


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
    assert _inspected(is_defective=is_defective, decision=decision).outcome == outcome


def test_another_threshold_judges_again_and_a_score_on_it_is_ok():
    item = _inspected(is_defective=True, score=0.5, threshold=0.6)
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
        _inspected(elapsed_ms=10.0),
        _inspected(decision="ng", elapsed_ms=20.0),
        _inspected(is_defective=True, decision="ng", elapsed_ms=30.0),
        _inspected(is_defective=True, decision="ok", note="set the threshold", elapsed_ms=40.0),
    ]
    counts = tally(items)
    assert (counts.n_passed, counts.n_good, counts.n_found, counts.n_defective) == (1, 2, 1, 1)
    assert (counts.n_aside, counts.n_aside_right) == (1, 0)
    assert counts.median_ms == 25.0


def test_the_heat_map_leaves_cold_pixels_grey_and_colours_hot_ones():
    image = np.full((1, 4, 3), (90, 120, 150), np.uint8)
    grey = round(0.114 * 90 + 0.587 * 120 + 0.299 * 150)  # 126
    painted = paint_heatmap(image, np.array([[0, 64, 128, 255]], np.uint8)).astype(int)
    assert painted[0, 0].tolist() == [grey] * 3
    assert painted[0, 1].tolist() == [grey] * 3  # Half the threshold: nothing to see yet.
    for hot in (2, 3):
        blue, _, red = painted[0, hot]
        assert red > blue + 50
    assert painted[0, 3].sum() > painted[0, 2].sum()


def test_the_heat_map_darkens_what_is_not_inspected():
    image = np.full((1, 2, 3), 100, np.uint8)
    painted = paint_heatmap(image, np.zeros((1, 2), np.uint8), np.array([[True, False]]))
    assert painted[:, :, 0].tolist() == [[100, 40]]


def test_the_histogram_names_both_kinds_and_every_threshold():
    items = [_inspected(score=0.4), _inspected(score=0.45), _inspected(is_defective=True, score=0.9)]
    svg = score_histogram(items, [("first try", 0.5), ("in force", 0.6)])
    comments = " ".join(re.findall(r"<!--(.*?)-->", svg))
    for words in ("good parts (2)", "defective parts (1)", "first try: 0.500", "in force: 0.600"):
        assert words in comments
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("items", [[], [_inspected()], [_inspected(), _inspected()]])
def test_the_histogram_stands_with_few_or_equal_scores(items):
    assert score_histogram(items).startswith("<svg")


def _report(**changes):
    values = {
        "title": "Inspection",
        "lead": "Two parts.",
        "thresholds": (("from good parts", 0.5),),
        "items": (
            _inspected(name="good one", inspected_mask=np.ones((20, 30), np.bool_)),
            _inspected(
                name="bad one",
                is_defective=True,
                score=0.8,
                decision="ng",
                defect_mask=np.eye(20, 30, dtype=np.bool_),
                regions=(
                    FoundRegion(contour_xy=((1, 1), (5, 1), (5, 5)), area_mm2=3.25),
                    FoundRegion(contour_xy=((9, 9),), area_mm2=7.5),
                ),
            ),
        ),
    }
    return Report(**{**values, **changes})


def test_the_page_fetches_nothing_and_runs_no_script():
    page = render_report(_report())
    assert re.findall(r'(?:src|href)="(?!data:image/|#)', page) == []
    assert "<script" not in page
    assert re.search(r"url\((?!#)", page) is None
    assert "@import" not in page


def test_the_page_says_each_decision_as_a_word_with_its_score_threshold_and_areas():
    page = render_report(_report())
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("<main>")[1]))
    assert re.search(r"bad one NG 0\.800 above the threshold 0\.500 10 ms 2 regions: 7\.5 mm², 3\.2 mm²", text)
    assert re.search(r"good one OK 0\.400 within the threshold 0\.500 10 ms no region", text)


def test_the_page_draws_the_found_regions_and_the_true_defect():
    page = render_report(_report())
    assert 'class="found" d="M1.5 1.5L5.5 1.5L5.5 5.5Z M9.5 9.5Z"' in page
    assert re.search(r'class="truth" d="M0\.5 0\.5L', page)


def test_the_page_puts_wrong_decisions_first_and_names_them():
    items = (
        _inspected(name="fine"),
        _inspected(name="rejected", decision="ng"),
        _inspected(name="slipped", is_defective=True),
    )
    page = render_report(_report(items=items))
    assert page.index("Wrong decisions") < page.index("Good parts <small>")
    assert page.index("rejected</h3>") < page.index("slipped</h3>") < page.index("fine</h3>")
    assert "False alarm on a good part" in page
    assert "Missed defect" in page


def test_names_and_sentences_are_escaped():
    page = render_report(
        _report(
            title="<b>T</b>",
            caution="<script>alert(1)</script>",
            notes=("a < b",),
            facts=(("<i>k</i>", "<i>v</i>"),),
            items=(_inspected(name='"><script>x</script>'),),
        )
    )
    assert "<script" not in page
    assert "<i>k" not in page
    assert "&lt;b&gt;T&lt;/b&gt;" in page


def test_a_page_without_a_threshold_says_that_nothing_was_judged():
    page = render_report(_report(thresholds=(), items=(_inspected(threshold=None, decision=None),)))
    assert "NOT JUDGED" in page
    assert "no threshold yet" in page


def test_large_pictures_are_made_smaller_for_the_page():
    large = np.zeros((1000, 2000, 3), np.uint8)
    page = render_report(_report(items=(_inspected(image_bgr=large, heatmap=large[:, :, 0]),)))
    for data in re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", page):
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (320, 640, 3)


def test_the_page_is_written_as_utf8_into_a_new_folder(tmp_path):
    path = tmp_path / "new" / "page.html"
    write_report(_report(title="Prüfung"), path)
    assert "Prüfung" in path.read_bytes().decode("utf-8")
