import re
from xml.etree import ElementTree

import pytest

from backend.demo.histogram import score_histogram
from tests.testkit.fakes import inspected


def test_the_histogram_names_both_kinds_and_every_threshold():
    items = [inspected(score=0.4), inspected(score=0.45), inspected(is_defective=True, score=0.9)]
    svg = score_histogram(items, [("first try", 0.5), ("in force", 0.6)])
    comments = " ".join(re.findall(r"<!--(.*?)-->", svg))
    for words in ("good parts (2)", "defective parts (1)", "first try: 0.500", "in force: 0.600"):
        assert words in comments
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("items", [[], [inspected()], [inspected(), inspected()]])
def test_the_histogram_stands_with_few_or_equal_scores(items):
    assert score_histogram(items).startswith("<svg")
