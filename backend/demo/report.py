"""A page that shows what an inspection found: each image beside its heat map, its decision, and all scores at a glance.

The page is one HTML file: pictures and the histogram are inside it, no script, no font, nothing fetched. Colours never
stand alone: a decision is also a word and a sign, a bar also a hatch, an outline also a dash.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from backend.demo.inspected import Inspected, tally
from backend.imaging.image_codec import encode_png
from backend.scoring.anomaly_map import HEATMAP_AT_THRESHOLD
from backend.scoring.overlay import heat_colours, paint_heatmap

_OK_COLOUR, _NG_COLOUR = "#0072B2", "#D55E00"  # Okabe and Ito 2008: told apart by every kind of colour vision.
_PICTURE_EDGE_PX = 640


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything that one page says.

    Attributes:
        lead: One or two sentences under the headline: what was inspected, with what.
        caution: What the reader must know before believing anything, or empty.
        facts: Label and value of what was set up, in reading order.
        notes: Plain sentences, such as the warnings of the calibration.
        thresholds: Label and value of each threshold that was tried, one or more; the last one is in force.
        items: The images, one or more.
    """

    lead: str
    caution: str = ""
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    thresholds: Sequence[tuple[str, float]]
    items: Sequence[Inspected]


def render_report(report: Report) -> str:
    """Return the page as HTML."""
    environment = Environment(loader=PackageLoader("backend.demo"), autoescape=True, undefined=StrictUndefined)
    wrong = [item for item in report.items if not (item.is_right or item.note)]
    rest = [item for item in report.items if item.is_right or item.note]
    sections = (
        ("Wrong decisions", [_card(item) for item in wrong]),
        ("Defective parts", [_card(item) for item in rest if item.part.is_defective]),
        ("Good parts", [_card(item) for item in rest if not item.part.is_defective]),
    )
    return environment.get_template("report.html").render(
        report=report,
        tally=tally(report.items),
        histogram=Markup(score_histogram(report.items, report.thresholds)),
        sections=[(heading, cards) for heading, cards in sections if cards],
        has_truth=any(item.part.defect_mask is not None for item in report.items),
        has_shape=any(item.part.inspected_mask is not None for item in report.items),
        heat_stops=[
            f"#{colour_bgr[::-1].astype(np.uint8).tobytes().hex()}"
            for colour_bgr in heat_colours(np.linspace(HEATMAP_AT_THRESHOLD, 255, 5))
        ],
    )


def score_histogram(items: Sequence[Inspected], thresholds: Sequence[tuple[str, float]]) -> str:
    """Return a histogram of one or more scores with the thresholds as lines, as inline SVG."""
    good = [item.score for item in items if not item.part.is_defective]
    defective = [item.score for item in items if item.part.is_defective]
    values = [*good, *defective, *(value for _, value in thresholds)]
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 1e-3)
    edges = np.linspace(low - margin, high + margin, 37).tolist()
    with rc_context({"font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "report", "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(10.5, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        bars: dict[str, Any] = {"alpha": 0.75, "edgecolor": "white", "linewidth": 0.8}
        n_good, _, _ = axes.hist(good, edges, label=f"good parts ({len(good)})", color=_OK_COLOUR, **bars)
        label = f"defective parts ({len(defective)})"
        n_defective, _, _ = axes.hist(defective, edges, label=label, color=_NG_COLOUR, hatch="////", **bars)
        for label, value in thresholds[:-1]:
            axes.axvline(value, label=f"{label}: {value:.3f}", color="#777777", linestyle=(0, (4, 3)))
        label, value = thresholds[-1]
        axes.axvline(value, label=f"{label}: {value:.3f}", color="#111111", linewidth=2.0)
        tallest = float(np.max([n_good, n_defective]))
        axes.set(xlabel="image score (larger = more anomalous)", ylabel="images", ylim=(0, tallest * 1.15))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _card(item: Inspected) -> dict[str, Any]:
    part = item.part
    height, width = part.image_bgr.shape[:2]
    return {
        "item": item,
        "picture": _data_uri(part.image_bgr),
        "overlay": _data_uri(paint_heatmap(part.image_bgr, item.heatmap, part.inspected_mask)),
        "width": width,
        "height": height,
        "found_path": " ".join(_path(region["contour"]) for region in item.regions),
        "truth_path": _outline(part.defect_mask),
        "shape_path": _outline(part.inspected_mask),
        "gauge_percent": round(100 * min(item.score / (2 * item.threshold), 1.0), 1) if item.threshold else 0.0,
        "areas_mm2": sorted((region["area_mm2"] for region in item.regions), reverse=True),
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
    scale = min(1.0, _PICTURE_EDGE_PX / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    image_bgr = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    png = encode_png(image_bgr)
    _, encoded = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
    jpeg = encoded.tobytes()
    kind, data = ("jpeg", jpeg) if len(jpeg) < len(png) else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
