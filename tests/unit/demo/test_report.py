import base64
import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from backend.demo.report import Report, render_report, score_histogram
from backend.scoring.overlay import paint_heatmap
from tests.testkit.fakes import inspected


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


def _report(**changes):
    values = {
        "lead": "Two parts.",
        "thresholds": (("from good parts", 0.5),),
        "items": (
            inspected(name="good one", inspected_mask=np.ones((20, 30), np.bool_)),
            inspected(
                name="bad one",
                is_defective=True,
                score=0.8,
                decision="ng",
                defect_mask=np.eye(20, 30, dtype=np.bool_),
                regions=(
                    {"contour": [[1, 1], [5, 1], [5, 5]], "area_mm2": 3.25},
                    {"contour": [[9, 9]], "area_mm2": 7.5},
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
    assert re.search(
        r"bad one NG 0\.800 above the threshold 0\.500 10 ms 2 regions: 7\.5 mm², 3\.2 mm², on the defect", text
    )
    assert re.search(r"good one OK 0\.400 within the threshold 0\.500 10 ms no region", text)


def test_the_page_draws_the_found_regions_and_the_true_defect():
    page = render_report(_report())
    assert 'class="found" d="M1.5 1.5L5.5 1.5L5.5 5.5Z M9.5 9.5Z"' in page
    assert re.search(r'class="truth" d="M0\.5 0\.5L', page)


def test_the_page_puts_wrong_decisions_first_and_names_them():
    items = (
        inspected(name="fine"),
        inspected(name="rejected", decision="ng"),
        inspected(name="slipped", is_defective=True),
    )
    page = render_report(_report(items=items))
    assert page.index("Wrong decisions") < page.index("Good parts <small>")
    assert page.index("rejected</h3>") < page.index("slipped</h3>") < page.index("fine</h3>")
    assert "False alarm on a good part" in page
    assert "Missed defect" in page


def test_names_and_sentences_are_escaped():
    page = render_report(
        _report(
            lead="<b>T</b>",
            caution="<script>alert(1)</script>",
            notes=("a < b",),
            facts=(("<i>k</i>", "<i>v</i>"),),
            items=(inspected(name='"><script>x</script>'),),
        )
    )
    assert "<script" not in page
    assert "<i>k" not in page
    assert "&lt;b&gt;T&lt;/b&gt;" in page


def test_large_pictures_are_made_smaller_for_the_page():
    large = np.zeros((1000, 2000, 3), np.uint8)
    page = render_report(_report(items=(inspected(image_bgr=large, heatmap=large[:, :, 0]),)))
    for data in re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", page):
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (320, 640, 3)


def test_the_histogram_names_both_kinds_and_every_threshold():
    items = [inspected(score=0.4), inspected(score=0.45), inspected(is_defective=True, score=0.9)]
    svg = score_histogram(items, [("first try", 0.5), ("in force", 0.6)])
    comments = " ".join(re.findall(r"<!--(.*?)-->", svg))
    for words in ("good parts (2)", "defective parts (1)", "first try: 0.500", "in force: 0.600"):
        assert words in comments
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("items", [[inspected()], [inspected(score=0.5), inspected(score=0.5)]])
def test_the_histogram_stands_with_few_or_equal_scores(items):
    assert score_histogram(items, [("in force", 0.5)]).startswith("<svg")
