"""The screens Versions, Try and Trend over HTTP: what they show of the public calls, and what they ask of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.testkit.app import Api, answer_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import defective_image, encoded, good_image

NAMED = {"role_id": ROLE, "roi_id": ROI}
HOSTILE = "\"><script>alert(1)</script>'&{{7*7}}"
GOOD = [encoded(good_image(seed)) for seed in range(6)]
BAD = encoded(defective_image(9))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A ROI with three versions, two decisions and another recipe."""
    with running_app(tmp_path_factory.mktemp("screens") / "models") as started:
        answer_of(started.fit(GOOD[:4]))
        answer_of(started.calibrate(reason=HOSTILE))
        answer_of(started.client.post("/recipes/copy", json={"from": "default", "to": "summer"}), 201)
        answer_of(started.calibrate(threshold=1.9, score_mode="max"))
        answer_of(started.infer(GOOD[5], serial=HOSTILE))
        answer_of(started.infer(BAD))
        answer_of(started.client.get("/stats", params=NAMED))  # waits for what was decided
        yield started


def show(api: Api, path: str, **query: object) -> str:
    answer = api.client.get(path, params={**NAMED, **query})
    assert answer.status_code == 200, answer.text
    assert "<script>alert" not in answer.text
    return answer.text


def post(api: Api, path: str, **fields: object) -> httpx.Response:
    token = re.search(r'name="csrf_token" value="([0-9a-f]{64})"', show(api, "/ui/versions"))
    assert token
    headers = {"HX-Request": "true", "X-CSRF-Token": token[1]}
    return api.client.post(path, params=NAMED, data=fields, headers=headers)


def test_versions_are_listed_with_their_reasons_and_a_change_is_shown_first(api: Api) -> None:
    text = show(api, "/ui/versions")
    assert re.findall(r'<th scope="row" class="number">(\d+)</th>', text) == ["3", "2", "1"]
    assert "&lt;script&gt;" in text
    change = show(api, "/ui/versions/change", version=2)
    assert "Bring version 2 back" in change
    assert "1.9000" in change
    compared = show(api, "/ui/versions/compare", a=3, b=2)
    assert re.search(r"4 stored images|of 4\.", compared)
    assert compared.count("/datasets/file?") == 4


@pytest.mark.parametrize("number", ["", "x", "0", "99", "1.5", "9" * 5000, HOSTILE])
def test_what_is_no_version_is_refused(api: Api, number: str) -> None:
    for path, query in (("change", {"version": number}), ("compare", {"a": number, "b": "1"})):
        answer = api.client.get(f"/ui/versions/{path}", params={**NAMED, **query}, headers={"HX-Request": "true"})
        assert 'class="notice error"' in answer.text, path
        assert answer.headers["HX-Retarget"] == "#notices"
    assert 'class="notice error"' in post(api, "/ui/versions/activate", version=number).text


def test_try_offers_other_versions_and_recipes_and_a_report_that_needs_nothing_else(api: Api) -> None:
    text = show(api, "/ui/try")
    assert re.findall(r'<option value="((?:recipe_id|version)=[^"]*)"', text) == [
        "recipe_id=summer",
        "version=2",
        "version=1",
    ]
    assert 'name="mm_per_px" value="0.2"' in text
    assert "data:text/css;base64," in text


def test_a_trend_says_its_figures_in_a_table_and_leads_to_the_decisions(api: Api) -> None:
    text = show(api, "/ui/trend", bucket="hour", tz="Europe/Madrid")
    assert text.count('class="chart"') == 4
    link = re.search(r'hx-get="([^"]*/ui/trend/decisions[^"]*)"', text)
    assert link
    listed = api.client.get(link[1].replace("&amp;", "&"), headers={"HX-Request": "true"}).text
    assert listed.count("/ui/why?") == 2
    assert "&lt;script&gt;" in listed
    assert "<script" not in listed


@pytest.mark.parametrize(
    "query",
    [
        {"days": "0"}, {"days": "x"}, {"bucket": "year"}, {"statistic": HOSTILE}, {"tz": "Mars"}, {"tz": "../etc"},
        {"tz": HOSTILE}, {"tz": "x" * 5000}, {"bucket": "shift", "shifts": "06:00,18:00"},
    ],
)  # fmt: skip
def test_an_odd_address_of_the_trend_is_a_trend(api: Api, query: dict[str, str]) -> None:
    text = show(api, "/ui/trend", **query)
    assert ("does not know this time zone" in text) == ("tz" in query)


def test_shifts_that_are_none_are_refused_with_a_sentence(api: Api) -> None:
    answer = api.client.get("/ui/trend", params={**NAMED, "bucket": "shift", "shifts": "25:00"})
    assert answer.status_code == 422
    assert "shifts" in answer.text


def test_a_version_is_brought_back_with_its_reason(api: Api, tmp_path: Path) -> None:
    done = post(api, "/ui/versions/activate", version="2", reason=" the lamp is back ")
    assert done.headers["HX-Trigger"] == "version-activated"
    newest = answer_of(api.client.get("/versions", params=NAMED))["versions"][0]
    assert (newest["kind"], newest["activates"], newest["reason"]) == ("activation", 2, "the lamp is back")
