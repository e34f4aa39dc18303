"""A page that shows what an inspection found: each image beside its heat map, its decision, and all scores at a glance.

The page is one HTML file: pictures and the histogram are inside it, no script, no font, nothing fetched. Colours never
stand alone: a decision is also a word and a sign, a bar also a hatch, an outline also a dash.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from backend.imaging.image_codec import encode_png

Outcome = Literal["passed", "found", "false alarm", "missed", "not judged"]

_OK_COLOUR, _NG_COLOUR = "#0072B2", "#D55E00"  # Okabe and Ito 2008: told apart by every kind of colour vision.
_AT_THRESHOLD = 128
_PICTURE_EDGE_PX = 640
_FADE_IN = 0.5  # Below this share of the threshold a good part's own unrest is not drawn.


@dataclass(frozen=True, kw_only=True)
class FoundRegion:
    """One region of an answer: its outer contour in image pixels [[x, y], …] and its area on the part, mm²."""

    contour_xy: tuple[tuple[int, int], ...]
    area_mm2: float


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """One image, what is known about it, and what the service answered.

    Attributes:
        name: What the page calls the image.
        is_defective: The truth.
        image_bgr: [H, W, 3] uint8.
        heatmap: [H, W] uint8; 0 outside the inspected area, 128 = the threshold, 255 = twice the threshold or more.
        inspected_mask: [H, W] bool, the area that counts; None for the whole image.
        defect_mask: [H, W] bool, where the defect is; None when nobody knows.
        score: Image score; larger is more anomalous.
        threshold: Scores above it are ``ng``; None when not calibrated.
        decision: ``ok``, ``ng``, or None when not calibrated.
        regions: Where the map reaches the threshold.
        elapsed_ms: How long the service took.
        note: A word on the part this image played; an image with a note is shown but not counted.
    """

    name: str
    is_defective: bool
    image_bgr: NDArray[np.uint8] = field(compare=False, repr=False)
    heatmap: NDArray[np.uint8] = field(compare=False, repr=False)
    inspected_mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    defect_mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    score: float
    threshold: float | None
    decision: Literal["ok", "ng"] | None
    regions: tuple[FoundRegion, ...]
    elapsed_ms: float
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        """What the decision is worth, given the truth."""
        if self.decision is None:
            return "not judged"
        if self.decision == "ng":
            return "found" if self.is_defective else "false alarm"
        return "missed" if self.is_defective else "passed"

    def judged_by(self, threshold: float) -> Inspected:
        """Return the same with the decision that another threshold would have given."""
        return replace(self, threshold=threshold, decision="ng" if self.score > threshold else "ok")

    @classmethod
    def from_answer(
        cls,
        answer: Mapping[str, Any],
        *,
        name: str,
        is_defective: bool,
        image_bgr: NDArray[np.uint8],
        inspected_mask: NDArray[np.bool_] | None = None,
        defect_mask: NDArray[np.bool_] | None = None,
        note: str = "",
    ) -> Inspected:
        """Return an image with the answer of ``POST /infer`` to it.

        Raises:
            ValueError: If the answer's heat map is missing or has another size than the image.
        """
        heatmap = decode_heatmap(answer.get("heatmap_png_base64"))
        if heatmap.shape != image_bgr.shape[:2]:
            raise ValueError(f"the heat map of {name} is {heatmap.shape}, the image {image_bgr.shape[:2]}")
        regions = tuple(
            FoundRegion(
                contour_xy=tuple((int(x), int(y)) for x, y in region["contour"]), area_mm2=float(region["area_mm2"])
            )
            for region in answer["regions"]
        )
        return cls(
            name=name,
            is_defective=is_defective,
            image_bgr=image_bgr,
            heatmap=heatmap,
            inspected_mask=inspected_mask,
            defect_mask=defect_mask,
            score=float(answer["score"]),
            threshold=answer["threshold"],
            decision=answer["decision"],
            regions=regions,
            elapsed_ms=float(answer["timings_ms"]["total"]),
            note=note,
        )


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many decisions were right; images with a note stand apart (``n_aside``), so that none goes unmentioned."""

    n_good: int
    n_passed: int
    n_defective: int
    n_found: int
    n_aside: int
    n_aside_right: int
    median_ms: float

    @property
    def all_right(self) -> bool:
        """True when every counted image was judged as it should be."""
        return self.n_passed == self.n_good and self.n_found == self.n_defective


def tally(items: Sequence[Inspected]) -> Tally:
    """Return how many images were judged right, those with a note apart, and how long the service took for one."""
    counted = [item for item in items if not item.note]
    aside = [item.outcome for item in items if item.note]
    outcomes = [item.outcome for item in counted]
    return Tally(
        n_good=sum(not item.is_defective for item in counted),
        n_passed=outcomes.count("passed"),
        n_defective=sum(item.is_defective for item in counted),
        n_found=outcomes.count("found"),
        n_aside=len(aside),
        n_aside_right=sum(outcome in ("passed", "found") for outcome in aside),
        median_ms=median(item.elapsed_ms for item in items) if items else 0.0,
    )


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


def decode_heatmap(png_base64: str | None) -> NDArray[np.uint8]:
    """Return the heat map of an answer, [H, W] uint8.

    Raises:
        ValueError: If there is none, or it is no image.
    """
    if not png_base64:
        raise ValueError("the answer has no heat map")
    data = np.frombuffer(base64.b64decode(png_base64, validate=True), np.uint8)
    heatmap = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    if heatmap is None:
        raise ValueError("the answer's heat map is no image")
    return heatmap.astype(np.uint8, copy=False)


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


def score_histogram(items: Sequence[Inspected], thresholds: Sequence[tuple[str, float]] = ()) -> str:
    """Return a histogram of the scores of good and defective parts with the thresholds as lines, as inline SVG."""
    good = [item.score for item in items if not item.is_defective]
    defective = [item.score for item in items if item.is_defective]
    values = [*good, *defective, *(value for _, value in thresholds)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = max(0.06 * (high - low), 1e-3)
    edges = np.linspace(low - margin, high + margin, 37).tolist()
    with rc_context({"font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "report", "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(10.5, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        tallest = 1
        for scores, label, colour, hatch in (
            (good, "good parts", _OK_COLOUR, ""),
            (defective, "defective parts", _NG_COLOUR, "////"),
        ):
            counts, _, _ = axes.hist(
                scores, edges, label=f"{label} ({len(scores)})", color=colour, alpha=0.75, hatch=hatch,
                edgecolor="white", linewidth=0.8,
            )  # fmt: skip
            tallest = max(tallest, int(np.max(counts)))
        for index, (label, value) in enumerate(thresholds):
            in_force = index == len(thresholds) - 1
            style = (
                {"color": "#111111", "linewidth": 2.0} if in_force else {"color": "#777777", "linestyle": (0, (4, 3))}
            )
            axes.axvline(value, label=f"{label}: {value:.3f}", **style)
        axes.set(xlabel="image score (larger = more anomalous)", ylabel="images", ylim=(0, tallest * 1.15))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


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
