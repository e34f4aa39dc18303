"""A real browser that watches what goes wrong on a page: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parent / "axe" / "axe-4.14.1.min.js"


@dataclass
class Watched:
    """A page of the browser, and what went wrong on it."""

    page: Any
    base: str
    offences: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.offences.append(f"script: {error}"))
        self.page.on("request", self._request)

    def open(self, path: str) -> None:
        self.page.goto(self.base + path)
        self.page.wait_for_load_state("networkidle")

    def serious_findings(self) -> list[str]:
        """Return what axe-core finds that is serious or critical."""
        session = self.page.context.new_cdp_session(self.page)
        session.send(
            "Runtime.evaluate", {"expression": AXE.read_text("utf-8") + ";0"}
        )  # the page's policy lets no script in
        found = self.page.evaluate(
            "async () => (await axe.run()).violations.map((v) => "
            "[v.impact, v.id, v.nodes.map((n) => n.html).join(' ')])"
        )
        return [f"{name}: {where[:300]}" for impact, name, where in found if impact in ("serious", "critical")]

    def is_too_wide(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.offences.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((f"{self.base}/", "data:", f"blob:{self.base}/")):
            self.offences.append(f"asked elsewhere: {request.url}")


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; Playwright must be installed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def watched(browser: Any, base: str, width: int = 1280, scheme: str = "light", **more: Any) -> Iterator[Watched]:
    """Open a page of the browser; nothing may have gone wrong on it in the end.

    Args:
        browser: As of ``chromium``.
        base: Address of the service.
        width: Of the window, px.
        scheme: ``light`` or ``dark``.
        more: Of Playwright's context.
    """
    context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme, **more)
    page = Watched(context.new_page(), base)
    page.watch()
    yield page
    context.close()
    assert page.offences == []
