"""An engineer's day at the page, in a real browser before the service's own process: from thirty images to a way back.

Drop → fit → drag the threshold → apply → inspect → why → "good after all" → refit → compare → roll back; then a folder
that is tried, and the trend. Nothing may fail on the way, be asked of another host, or keep anybody from reading it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testkit.browser import CHROMIUM, Watched, chromium, watched
from tests.testkit.client import Client
from tests.testkit.fakes import defective_image, encoded, good_image
from tests.testkit.server import Process

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; see requirements-dev.txt")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.slow,
]

EDGE = (96, 96)
ROI = "role_id=Inspection&roi_id=day"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self';"
FORMULA = '=HYPERLINK("//evil.example","click").png'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty good images, and in ``later`` what comes by on the line."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "good").mkdir()
    (folder / "later").mkdir()
    for seed in range(30):
        (folder / "good" / f"part {seed}.png").write_bytes(encoded(good_image(seed, image_hw=EDGE)))
    for seed in range(60, 64):
        (folder / "later" / f"part {seed}.png").write_bytes(encoded(good_image(seed, image_hw=EDGE)))
    (folder / "later" / FORMULA.replace("/", "∕")).write_bytes(encoded(defective_image(70, image_hw=EDGE)))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_day_from_thirty_images_to_a_way_back(
    browser: Any, images: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    with Process(tmp_path / "models", audit=True) as process:
        client = process.start().at("day")
        base = f"http://127.0.0.1:{client.port}"
        with watched(browser, base, width, scheme, accept_downloads=True, locale="en-GB") as seen:
            policies: set[str] = set()

            def keep_policy(answer: Any) -> None:
                if answer.url.startswith(f"{base}/ui") and "text/html" in answer.headers.get("content-type", ""):
                    policies.add(answer.headers.get("content-security-policy", ""))

            seen.page.on("response", keep_policy)
            _learn(seen, client, images)
            threshold = _move_threshold(seen, client)
            _inspect_and_explain(seen, client, images)
            _learn_again(seen, client)
            _compare_and_roll_back(seen, client, threshold)
            _try_a_folder(seen, client, images, tmp_path)
            _look_at_the_trend(seen, client)
            for path in ("/ui", "/ui/system"):
                seen.open(f"{path}?{ROI}")
                _is_readable(seen)
        assert len(policies) == 1
        assert all(policy.startswith(POLICY) and "unsafe" not in policy for policy in policies)
        process.stop()


def _is_readable(seen: Watched) -> None:
    assert not seen.is_too_wide()
    assert seen.serious_findings() == []


def _learn(seen: Watched, client: Client, images: Path) -> None:
    page = seen.page
    seen.open(f"/ui/learn?{ROI}")
    page.locator("#drop input[webkitdirectory]").set_input_files(str(images / "good"))
    page.get_by_role("button", name="Store", exact=True).click()
    page.fill("[name=mm_per_px]", "0.2")
    page.click("#fit button")
    page.locator(".job[data-state=done]").wait_for()
    page.get_by_text("The stored good images are learned.").wait_for()
    assert page.locator(".image").count() == 30
    _is_readable(seen)
    assert client.about("/manifest").ok()["fit"]["n_ok_total"] == 30


def _move_threshold(seen: Watched, client: Client) -> float:
    """Drag the line, apply where it lies, and return the threshold in force."""
    page = seen.page
    seen.open(f"/ui/threshold?{ROI}")
    line = page.locator(".u-over input[aria-valuetext]")
    line.wait_for()
    before = float(line.get_attribute("aria-valuetext"))
    plot = page.locator(".u-over").bounding_box()
    low, high, at = (float(text) for text in (line.get_attribute("min"), line.get_attribute("max"), line.input_value()))
    x, y = plot["x"] + plot["width"] * (at - low) / (high - low), plot["y"] + plot["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.05 * plot["width"], y, steps=5)
    page.mouse.up()
    value = float(page.input_value("[name=threshold]"))
    assert value > before
    page.get_by_role("button", name="Dry run").click()
    page.locator("#tried table").wait_for()
    page.fill("[name=reason]", "Fewer false alarms on the night shift")
    page.get_by_role("button", name="Apply").click()
    page.locator("#notices .done").wait_for()
    _is_readable(seen)
    calib = client.about("/manifest").ok()["calib"]
    assert (calib["threshold"], calib["method"]) == (value, "manual")
    return value


def _inspect_and_explain(seen: Watched, client: Client, images: Path) -> None:
    """Have the line inspect parts, look at one of them, and keep it as good after all."""
    for path in sorted((images / "later").glob("part *.png")):
        client.infer(path.read_bytes(), serial=f"SN-{path.stem[5:]}").ok()
    bad = client.infer(next((images / "later").glob("=*")).read_bytes(), serial="SN-70").ok()
    assert bad["decision"] == "ng"
    page = seen.page
    seen.open(f"/ui/why?{ROI}")
    row = page.locator("tr", has_text="SN-70")
    row.get_by_role("link").first.click()
    page.locator(".layers").wait_for()
    page.wait_for_load_state("networkidle")
    _is_readable(seen)
    page.get_by_role("button", name="Good after all").click()
    page.get_by_role("button", name="Store as good").click()
    page.locator("#would .done, #would .notice").first.wait_for()
    assert client.about("/datasets/list").ok()["classes"]["ok"]["count"] == 31


def _learn_again(seen: Watched, client: Client) -> None:
    page = seen.page
    seen.open(f"/ui/learn?{ROI}")
    page.click("#fit button")
    page.locator(".job[data-state=done]").wait_for()
    page.get_by_text("The stored good images are learned.").wait_for()
    assert client.about("/manifest").ok()["fit"]["n_ok_total"] == 31


def _compare_and_roll_back(seen: Watched, client: Client, threshold: float) -> None:
    page = seen.page
    kinds = [(each["version"], each["kind"]) for each in client.about("/versions").ok()["versions"]]
    wanted = next(number for number, kind in kinds if kind == "calibration")
    seen.open(f"/ui/versions?{ROI}")
    page.get_by_text("Fewer false alarms on the night shift").wait_for()
    page.get_by_label(f"Version {wanted} as A").check()
    page.get_by_role("button", name="Compare A with B").click()
    page.locator("#sides-title").wait_for()
    page.get_by_text(re.compile(r"31 stored images|of 31\.")).wait_for()
    page.wait_for_load_state("networkidle")
    _is_readable(seen)
    page.get_by_role("button", name=f"Bring back… Version {wanted}").click()
    page.locator("#change-title").wait_for()
    page.locator("#sides-title").wait_for()
    page.wait_for_load_state("networkidle")
    _is_readable(seen)
    assert client.about("/versions").ok()["versions"][0]["version"] == kinds[0][0], (
        "nothing is done before it is confirmed"
    )
    page.fill("[name=reason]", "The part with the scratch was bad")
    page.get_by_role("button", name=f"Bring version {wanted} back").click()
    page.locator("#notices .done").wait_for()
    page.locator("tr.now", has_text="The part with the scratch was bad").wait_for()
    manifest = client.about("/manifest").ok()
    assert (manifest["fit"]["n_ok_total"], manifest["calib"]["threshold"]) == (30, threshold)


def _try_a_folder(seen: Watched, client: Client, images: Path, folder: Path) -> None:
    page = seen.page
    n_kept = len(client.about("/decisions").ok()["decisions"])
    stored = client.about("/datasets/list").ok()["classes"]
    seen.open(f"/ui/try?{ROI}")
    page.select_option("[name=other]", index=1)
    page.locator("#drop input[webkitdirectory]").set_input_files(str(images / "later"))
    page.locator("#progress").wait_for(state="hidden")
    page.get_by_text("5 of 5 images: 4 OK, 1 NG").wait_for()
    assert page.locator("#results img").count() == 5
    score = page.get_by_role("button", name="Score", exact=True)
    for way in ("ascending", "descending"):
        score.click()
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == way
        values = page.locator("td[data-key=score]").evaluate_all("(cells) => cells.map((cell) => cell.dataset.value)")
        numbers = [float(value) for value in values]
        assert numbers == sorted(numbers, reverse=way == "descending")
    _is_readable(seen)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as CSV").click()
    data = saved.value.path().read_bytes()
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    assert [row["Name"] for row in rows if row["Decision"] == "NG"] == ["'" + FORMULA.replace("/", "∕")]
    assert [float(row["Score"]) for row in rows] == sorted((float(row["Score"]) for row in rows), reverse=True)
    assert not any(cell.startswith(tuple("=+-@\t\r")) for row in rows for cell in row.values())
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as a report").click()
    report = folder / "report.html"
    saved.value.save_as(report)
    text = report.read_text("utf-8-sig")
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', text) == [], "it needs nothing else"
    assert "<script" not in text
    with watched(seen.page.context.browser, report.parent.as_uri()) as offline:
        offline.page.goto(report.as_uri())
        assert offline.page.locator("img").count() == 5
        assert offline.page.locator("button").count() == 0
        assert offline.serious_findings() == []
    page.locator("#drop input[multiple]:not([webkitdirectory])").set_input_files(images / "broken.png")
    page.locator("td", has_text="not inspected").wait_for()
    assert page.locator("td.remarks").inner_text().endswith(".")
    seen.offences[:] = [each for each in seen.offences if "400 (Bad Request)" not in each]  # the browser's own words
    assert len(client.about("/decisions").ok()["decisions"]) == n_kept, "what is tried counts nowhere"
    assert client.about("/datasets/list").ok()["classes"] == stored


def _look_at_the_trend(seen: Watched, client: Client) -> None:
    page = seen.page
    seen.open(f"/ui/trend?{ROI}&bucket=hour")
    assert page.locator(".chart canvas").count() == 4
    _is_readable(seen)
    page.locator(".u-over").first.click()
    page.locator("#decisions-title").wait_for()
    assert page.locator("#decisions tbody tr").count() == len(client.about("/decisions").ok()["decisions"])
    page.get_by_role("button", name="NG only").click()
    page.locator("#decisions [aria-pressed=true]", has_text="NG only").wait_for()
    page.locator("#decisions tbody a").first.click()
    page.locator(".layers").wait_for()
    assert "/ui/why?" in page.url
