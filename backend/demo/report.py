"""A page that shows what an inspection found: each image beside its heat map, its decision, and all scores at a glance.

The page is one HTML file: pictures and the histogram are inside it, no script, no font, nothing fetched. Colours never
stand alone: a decision is also a word and a sign, a bar also a hatch, an outline also a dash.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from backend.demo.histogram import score_histogram
from backend.demo.inspected import Inspected, tally
from backend.imaging.image_codec import encode_png

_AT_THRESHOLD = 128
_PICTURE_EDGE_PX = 640
_FADE_IN = 0.5  # Below this share of the threshold a good part's own unrest is not drawn.


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one page says.

    Attributes:
        title: Headline.
        lead: One or two sentences under it: what was inspected, with what.
        caution: What the reader must know before believing anything, or empty.
        facts: Label and value of what was set up, in reading order.
        notes: Plain sentences, such as the warnings of the calibration.
        thresholds: Label and value of each threshold that was tried; the last one is in force.
        items: The images.
    """

    title: str
    lead: str
    caution: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    thresholds: tuple[tuple[str, float], ...] = ()
    items: tuple[Inspected, ...]


def write_report(report: Report, path: Path) -> None:
    """Write the page to a file, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(report), encoding="utf-8", newline="\n")


def render_report(report: Report) -> str:
    """Return the page as HTML."""
    environment = Environment(loader=PackageLoader("backend.demo"), autoescape=True, undefined=StrictUndefined)
    wrong = [item for item in report.items if item.outcome in ("missed", "false alarm") and not item.note]
    rest = [item for item in report.items if item not in wrong]
    sections = (
        ("Wrong decisions", [_card(item) for item in wrong]),
        ("Defective parts", [_card(item) for item in rest if item.is_defective]),
        ("Good parts", [_card(item) for item in rest if not item.is_defective]),
    )
    return environment.get_template("report.html").render(
        report=report,
        tally=tally(report.items),
        histogram=Markup(score_histogram(report.items, report.thresholds)),
        sections=[(heading, cards) for heading, cards in sections if cards],
        has_truth=any(item.defect_mask is not None for item in report.items),
        has_shape=any(item.inspected_mask is not None for item in report.items),
        heat_stops=[_hex(colour) for colour in _heat_colours(np.linspace(_AT_THRESHOLD, 255, 5))],
    )


def paint_heatmap(
    image_bgr: NDArray[np.uint8], heatmap: NDArray[np.uint8], inspected_mask: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Return the grey image with the heat map over it: below the threshold it fades into the grey, above it glows.

    Args:
        image_bgr: [H, W, 3] uint8.
        heatmap: [H, W] uint8, 128 = the threshold.
        inspected_mask: [H, W] bool; what lies outside is darkened.

    Returns:
        [H, W, 3] uint8, BGR.
    """
    grey = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    if inspected_mask is not None:
        grey = np.where(inspected_mask, grey, 0.4 * grey)
    share = heatmap.astype(np.float32) / _AT_THRESHOLD
    # Rises late, to 0.45 at the threshold, where it steps to 0.6: a good part stays grey, and a region has a border.
    below = 0.45 * np.clip((share - _FADE_IN) / (1.0 - _FADE_IN), 0.0, 1.0) ** 4
    opacity = np.where(heatmap >= _AT_THRESHOLD, 0.60 + 0.25 * np.clip(share - 1.0, 0.0, 1.0), below)[..., None]
    painted = (1.0 - opacity) * grey[..., None] + opacity * _heat_colours(heatmap)
    return np.asarray(np.rint(painted), dtype=np.uint8)


def _heat_colours(heat: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the BGR colours of heat values 0..255: inferno from violet at half the threshold to pale yellow."""
    place = np.interp(heat.astype(np.float32), [_FADE_IN * _AT_THRESHOLD, 255], [80, 250])
    colours = cv2.applyColorMap(np.rint(place).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return colours.reshape(*heat.shape, 3).astype(np.float32)


def _card(item: Inspected) -> dict[str, Any]:
    height, width = item.image_bgr.shape[:2]
    shown = 0.0 if item.threshold is None or item.threshold <= 0 else min(item.score / (2 * item.threshold), 1.0)
    return {
        "item": item,
        "picture": _data_uri(item.image_bgr),
        "overlay": _data_uri(paint_heatmap(item.image_bgr, item.heatmap, item.inspected_mask)),
        "width": width,
        "height": height,
        "found_path": " ".join(_path(region.contour_xy) for region in item.regions),
        "truth_path": _outline(item.defect_mask),
        "shape_path": _outline(item.inspected_mask),
        "gauge_percent": round(100 * shown, 1),
        "areas_mm2": sorted((region.area_mm2 for region in item.regions), reverse=True),
    }


def _outline(mask: NDArray[np.bool_] | None) -> str:
    if mask is None:
        return ""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return " ".join(_path(contour.reshape(-1, 2).tolist()) for contour in contours)


def _path(contour_xy: Sequence[Sequence[float]]) -> str:
    """Return an SVG path through pixel centres, which lie at half coordinates there."""
    return "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in contour_xy) + "Z"


def _data_uri(image_bgr: NDArray[np.uint8]) -> str:
    """Return a picture for the page, at most ``_PICTURE_EDGE_PX`` a side, as JPEG where that is the smaller file."""
    height, width = image_bgr.shape[:2]
    scale = _PICTURE_EDGE_PX / max(height, width)
    if scale < 1:
        size = (max(1, round(scale * width)), max(1, round(scale * height)))
        image_bgr = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    png = encode_png(image_bgr)
    _, encoded = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
    jpeg = encoded.tobytes()
    kind, data = ("jpeg", jpeg) if len(jpeg) < len(png) else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _hex(colour_bgr: NDArray[np.float32]) -> str:
    blue, green, red = (int(channel) for channel in colour_bgr)
    return f"#{red:02x}{green:02x}{blue:02x}"
