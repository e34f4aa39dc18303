"""Learn: the stored images of a ROI by their own scores, what the ROI resolves, and fits of it as jobs."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from backend.ui.client import CallFailed
from backend.ui.page import Page
from backend.ui.screen import Screen
from backend.ui.screens import jobs

screen = Screen("learn")

_UNUSABLE = frozenset({"artefact_outdated", "artefact_corrupt"})


@screen.get()
async def show(page: Page) -> Response:
    """Show what the ROI has learned and what is stored for it."""
    if not await page.choose_roi():
        return await page.render("learn_new.html")
    return await page.render("learn.html", **await _found(page))


@screen.get("new")
async def name_roi(page: Page) -> Response:
    """Ask for the ids of a ROI that is not there yet."""
    await page.choose_roi()
    return await page.render("learn_new.html")


@screen.get("body")
async def body(page: Page) -> Response:
    """Show the same without the frame, after a fit or an upload."""
    return page.fragment("learn_body.html", **await _found(page))


@screen.get("state")
async def state(page: Page) -> Response:
    """Show whether what is stored is what was learned."""
    return page.fragment("learn_state.html", **await _found(page))


@screen.post("fit")
async def fit(page: Page) -> Response:
    """Learn the stored good images, as a job."""
    form = await page.form()
    fields = {**page.selection.roi, "use_dataset": "true", "mm_per_px": form.get("mm_per_px", "").replace(",", ".")}
    if form.get("aligned"):
        fields["aligned"] = form["aligned"]
    return jobs.started(page, await page.calls.post_form("/fit_ok", fields, in_background=True))


@screen.post("refit")
async def refit(page: Page) -> Response:
    """Learn again what the ROI had learned, as a job: after an update, or with another extractor."""
    asked = {**page.selection.roi, "force": True}
    return jobs.started(page, await page.calls.post("/refit", asked, in_background=True))


@screen.post("exclude")
async def exclude(page: Page) -> Response:
    """Keep a good image out of the fits, or let it in again, and show it so."""
    form = await page.form()
    filename = form.get("filename", "")
    asked = {**page.selection.roi, "filename": filename, "excluded": form.get("excluded") == "true"}
    await page.calls.post("/datasets/exclude", asked)
    image = next((each for each in (await _found(page))["good"] if each["filename"] == filename), None)
    answer = page.fragment("learn_image.html", image=image, label="ok") if image else Response()
    answer.headers["HX-Trigger"] = "images-changed"
    return answer


@screen.post("delete")
async def delete(page: Page) -> Response:
    """Delete an image; nothing takes its place."""
    form = await page.form()
    named = {"label": form.get("label", ""), "filename": form.get("filename", "")}
    await page.calls.delete("/datasets/file", **page.selection.roi, **named)
    return Response(headers={"HX-Trigger": "images-changed"})


async def _found(page: Page) -> dict[str, Any]:
    """Return what the screen shows; a memory that cannot be used is shown as its sentence, beside the images."""
    roi = page.selection.roi
    listed, (manifest, unusable) = await asyncio.gather(
        page.calls.get("/datasets/list", **roi), _unless_unusable(page.calls.get("/manifest", **roi))
    )
    scores = await page.calls.get("/scores", **roi) if manifest and manifest["memory"] else None
    mode = scores["score_mode"] if scores else None
    scored = {(each["label"], each["filename"]): each for each in scores["images"]} if scores else {}
    good, bad = (
        [
            _image(name, scored.get((label, name)), mode, name in listed["classes"][label]["excluded"])
            for name in listed["classes"][label]["files"]
        ]
        for label in ("ok", "ng")
    )
    good.sort(key=lambda image: (image["is_excluded"], -(image["score"] or 0.0)))
    bad.sort(key=lambda image: image["score"] or 0.0)
    wanted = [image for image in good if not image["is_excluded"]]
    return {
        "good": good,
        "bad": bad,
        "fit": manifest["fit"] if manifest else None,
        "unusable": unusable,
        "mode": mode,
        "threshold": scores["threshold"] if scores else None,
        "n_new": sum(not image["is_learned"] for image in wanted),
        "n_dropped": sum(image["is_excluded"] and image["is_learned"] for image in good)
        + sum(each["label"] == "ok" and each["filename"] is None for each in scored.values()),
        "n_suspects": sum(image["is_suspect"] for image in good),
        "n_near_identical": sum(image["is_near_identical"] for image in good),
    }


def _image(name: str, scored: dict[str, Any] | None, mode: str | None, is_excluded: bool) -> dict[str, Any]:
    score = scored["scores"].get(mode) if scored else None
    return {
        "filename": name,
        "score": score,
        "is_learned": scored is not None,
        "is_suspect": bool(scored and scored["suspect"]),
        "is_near_identical": bool(scored and scored["near_identical"]),
        "is_excluded": is_excluded,
    }


async def _unless_unusable(call: Any) -> tuple[dict[str, Any] | None, str]:
    """Return an answer, or None and why the memory cannot be used."""
    try:
        return await call, ""
    except CallFailed as error:
        if error.code in _UNUSABLE:
            return None, error.sentence
        raise
