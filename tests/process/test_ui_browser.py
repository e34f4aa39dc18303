"""The engineer's page in a real browser, Debian's Chromium: nothing fails, nothing leaves, everybody can read it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backend.settings import Settings
from backend.ui.routes import SCREENS
from tests.testkit.app import SMALL_INPUT_PX
from tests.testkit.browser import CHROMIUM, Watched, chromium
from tests.testkit.browser import watched as watched_page
from tests.testkit.client import Client
from tests.testkit.fakes import defective_image, encoded, good_image
from tests.testkit.server import running

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; see requirements-dev.txt")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.slow,
]

PATHS = ["/ui" if screen.name == "overview" else f"/ui/{screen.name}" for screen in SCREENS]
SIZES = [(1280, "light"), (1280, "dark"), (640, "light"), (390, "light"), (390, "dark")]
"""640 px are 1280 px at 200 %."""
MODEL = {"role_id": "Inspection", "roi_id": "seen"}
GOOD = [encoded(good_image(seed, image_hw=(96, 96))) for seed in range(12)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    models = tmp_path_factory.mktemp("browser") / "models"
    settings = Settings(models_dir=models, extractor="filter-bank", input_size=SMALL_INPUT_PX, audit=True, device="cpu")
    with running(settings) as client:
        seen = client.at("seen")
        seen.upload("ok", GOOD).ok()
        seen.upload("ng", [encoded(defective_image(9, image_hw=(96, 96)))]).ok()
        seen.fit(use_dataset=True).ok()
        seen.calibrate().ok()
        for seed in range(20, 32):
            image = defective_image(seed, image_hw=(96, 96)) if seed % 4 == 0 else good_image(seed, image_hw=(96, 96))
            seen.infer(encoded(image), serial=f"SN-{seed}").ok()
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as launched:
        yield launched


@contextmanager
def watched(browser: Any, server: Client, width: int = 1280, scheme: str = "light", **more: Any) -> Iterator[Watched]:
    with watched_page(browser, f"http://127.0.0.1:{server.port}", width, scheme, **more) as page:
        yield page


@pytest.mark.parametrize(("width", "scheme"), SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_a_screen_is_whole_and_readable(browser: Any, server: Client, path: str, width: int, scheme: str) -> None:
    with watched(browser, server, width, scheme) as seen:
        seen.open(f"{path}?role_id=Inspection&roi_id=seen")
        assert seen.page.locator("h1").count() >= 1
        assert not seen.is_too_wide()
        assert seen.serious_findings() == []


@pytest.mark.parametrize("path", PATHS)
def test_a_screen_is_in_spanish_where_the_browser_is(browser: Any, server: Client, path: str) -> None:
    with watched(browser, server, 390, locale="es-ES") as seen:
        seen.open(f"{path}?role_id=Inspection&roi_id=seen")
        assert seen.page.locator("html").get_attribute("lang") == "es"
        assert not seen.is_too_wide()


def test_everything_can_be_reached_and_seen_with_the_keyboard(browser: Any, server: Client) -> None:
    with watched(browser, server) as seen:
        seen.open("/ui/learn?role_id=Inspection&roi_id=seen")
        reached = set()
        for _ in range(40):
            seen.page.keyboard.press("Tab")
            reached.add(
                seen.page.evaluate(
                    "() => { const it = document.activeElement;"
                    " const style = getComputedStyle(it.closest('label.button') ?? it);"
                    " return (it.textContent.trim() || it.name || it.className || it.type).slice(0, 24)"
                    " + '|' + style.outlineStyle; }"
                )
            )
        names = {each.rpartition("|")[0] for each in reached}
        assert {"Overview", "System", "New ROI", "Exclude", "Delete", "thumb"} <= names
        assert {each for each in reached if each.endswith("|none")} == set(), "the focus is seen"


def test_a_folder_is_seen_stored_learned_and_sorted_out(browser: Any, server: Client, tmp_path: Path) -> None:
    for number, data in enumerate(GOOD):
        (tmp_path / f"part {number}.png").write_bytes(data)
    (tmp_path / "notes.txt").write_text("no image")
    with watched(browser, server) as seen:
        page = seen.page
        page.on("dialog", lambda dialog: dialog.accept())
        seen.open("/ui/learn?role_id=Inspection&roi_id=dropped")
        page.locator("#drop input[webkitdirectory]").set_input_files(str(tmp_path))
        assert page.locator(".preview img").count() == 12
        assert page.locator("#drop .count").inner_text().startswith("12 images")
        page.locator("#drop").get_by_role("button", name="Store", exact=True).click()
        page.fill("[name=mm_per_px]", "0.2")
        page.click("#fit button")
        page.wait_for_selector(".job[data-state=done]")
        page.get_by_text("The stored good images are learned.").wait_for()
        assert page.locator(".image").count() == 12

        thumb = page.locator(".thumb").first
        with page.expect_response(re.compile("/scores/map")) as shown:
            thumb.hover()
        assert shown.value.status == 200
        page.locator(".image").first.get_by_role("button", name="Exclude").click()
        page.get_by_text("excluded or deleted: 1.").wait_for()
        page.locator(".image").nth(1).get_by_role("button", name="Delete").click()
        page.get_by_text("excluded or deleted: 2.").wait_for()
        assert page.locator(".image").count() == 11
        page.click("#fit button")
        page.get_by_text("The stored good images are learned.").wait_for()
        assert seen.serious_findings() == []


def test_a_threshold_is_dragged_moved_by_keys_tried_and_applied(browser: Any, server: Client) -> None:
    seen_roi = server.at("seen")
    good = sorted(
        image["scores"]["max"] for image in seen_roi.about("/scores").ok()["images"] if image["label"] == "ok"
    )
    with watched(browser, server) as seen:
        page = seen.page
        seen.open("/ui/threshold?role_id=Inspection&roi_id=seen")
        page.get_by_role("radio", name="Maximum").check(force=True)
        line = page.locator('.histogram[data-scores*=\'"mode": "max"\'] .u-over input[aria-valuetext]')
        line.wait_for()
        plot, thumb = page.locator(".u-over").bounding_box(), line.bounding_box()
        low, high = (float(line.get_attribute(name)) for name in ("min", "max"))
        row = plot["y"] + plot["height"] / 2

        def place(score: float) -> float:
            return float(plot["x"] + plot["width"] * (math.log2(score) - low) / (high - low))

        page.mouse.move(place(float(line.get_attribute("aria-valuetext"))), row)
        page.mouse.down()
        page.mouse.move(place(good[0]), row, steps=4)
        page.mouse.move(place(math.sqrt(good[-3] * good[-4])), row, steps=4)
        page.mouse.up()
        assert thumb["width"] > plot["width"]
        value = float(page.input_value("[name=threshold]"))
        n_above = sum(score > value for score in good)
        assert 0 < n_above < len(good)
        assert page.locator("[name=how][value=hand]").is_checked()
        assert page.locator("[data-worth=good]").inner_text() == f"{n_above} of {len(good)}"

        page.get_by_role("button", name="Dry run").click()
        page.locator("#tried table").wait_for()
        line.press("ArrowRight")
        moved = float(page.input_value("[name=threshold]"))
        assert moved > value
        assert page.locator("#tried table").count() == 0, "it was about another threshold"
        with page.expect_response(re.compile("/datasets/preview")):
            page.mouse.move(place(good[0]), row)
            page.mouse.move(place(good[-1]), row)
        page.get_by_role("button", name="Dry run").click()
        page.fill("[name=reason]", "A new lamp since Monday")
        page.get_by_role("button", name="Apply").click()
        page.locator("#notices .done").wait_for()
        assert seen.serious_findings() == []
    calib = seen_roi.about("/manifest").ok()["calib"]
    assert (calib["threshold"], calib["method"], calib["score_mode"]) == (moved, "manual", "max")
    assert calib["ok_rejected"] == sum(score > moved for score in good)


def test_an_image_is_explained_reported_and_kept(browser: Any, server: Client, tmp_path: Path) -> None:
    roi = server.at("why")
    roi.upload("ok", GOOD).ok()
    roi.fit(use_dataset=True).ok()
    roi.calibrate().ok()
    (tmp_path / "bad <b>.png").write_bytes(encoded(defective_image(77, image_hw=(96, 96))))
    (tmp_path / "good.png").write_bytes(encoded(good_image(78, image_hw=(96, 96))))
    with watched(browser, server, accept_downloads=True) as seen:
        page = seen.page
        seen.open("/ui/why?role_id=Inspection&roi_id=why")
        page.set_input_files("#send input", tmp_path / "bad <b>.png")
        page.locator(".layers").wait_for()
        assert page.locator(".over").evaluate("(image) => image.naturalWidth") == 96
        assert page.locator(".pair svg").count() == 2
        page.locator(".opacity").fill("0.25")
        assert page.locator(".over").evaluate("(image) => image.style.opacity") == "0.25"
        assert seen.serious_findings() == []
        with page.expect_download() as picture:
            page.get_by_role("link", name="Download as PNG").click()
        assert picture.value.path().read_bytes().startswith(b"\x89PNG")
        with page.expect_download() as report:
            page.get_by_role("button", name="Download as report").click()
        text = report.value.path().read_text("utf-8")
        assert re.findall(r'(?:src|href)="(?!data:image/)[^"]*"', text) == [], "it needs nothing else"
        assert "<script" not in text
        assert "<b>" not in text

        page.get_by_role("button", name="Really bad").click()
        page.get_by_role("button", name="Store as bad").click()
        page.locator("#would .done").wait_for()
        assert roi.about("/manifest").ok()["calib"]["n_ng"] == 1

        page.set_input_files("#send input", tmp_path / "good.png")
        page.locator("article[data-name='good.png']").wait_for()
        page.get_by_role("button", name="Good after all").click()
        page.get_by_role("button", name="Store as good").click()
        page.get_by_role("button", name="Learn the stored images").click()
        page.locator(".job[data-state=done]").wait_for()
    manifest = roi.about("/manifest").ok()
    assert (manifest["fit"]["n_ok_total"], manifest["calib"]["n_ok"]) == (len(GOOD) + 1, len(GOOD) + 1)


def test_signing_in_and_out(browser: Any, tmp_path: Path) -> None:
    key = "admin-0123456789abcdef"
    settings = Settings(models_dir=tmp_path / "models", extractor="filter-bank", api_keys=f"admin:{key}", device="cpu")  # type: ignore[arg-type]
    with running(settings) as server, watched(browser, server) as seen:
        page = seen.page
        seen.open("/ui/system")
        assert seen.serious_findings() == []
        page.fill("[name=key]", key)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/ui/system")
        assert "roi_session" not in page.evaluate("document.cookie")
        page.get_by_role("button", name="Español").click()
        page.get_by_role("button", name="Verificar").click()
        page.get_by_text("íntegros").wait_for()
        page.get_by_role("button", name="Cerrar sesión").click()
        page.wait_for_url("**/ui/sign-in")
        seen.open("/ui/learn")
        assert "/ui/sign-in" in page.url
