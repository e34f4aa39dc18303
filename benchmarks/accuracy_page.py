"""What was measured, as a page with tables, plots and the worst cases."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from backend.calib import ScoreMode
from backend.scoring.inspection import Inspection
from backend.scoring.overlay import paint_heatmap
from benchmarks.accuracy_tables import aligned_text, caption, figure_text, kind_rows, mode_name, row_name, rows
from benchmarks.datasets import LabelledImage
from benchmarks.metrics import Measurement, best_of, roc_points

# Okabe and Ito 2008: told apart by every kind of colour vision.
_OK_COLOUR, _NG_COLOUR = "#0072B2", "#D55E00"
_MODE_STYLES: dict[ScoreMode, tuple[str, str]] = {
    "percentile": ("#000000", "-"),
    "top_mean": ("#009E73", "--"),
    "max": ("#CC79A7", "-."),
    "area": ("#56B4E9", ":"),
}
_MARKER: dict[str, Any] = {"markersize": 9, "markeredgecolor": "white", "linestyle": "none", "zorder": 3}
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.hashsalt": "accuracy",
    "hatch.linewidth": 0.6,
}
_PICTURE_EDGE_PX = 640


@dataclass(frozen=True, kw_only=True)
class Case:
    """One inspected image for the page.

    Attributes:
        image: The file and the truth.
        image_bgr: [H, W, 3] uint8.
        inspection: What the service found.
        defect_mask: [H, W] bool, where the defect is; None when nobody knows.
    """

    image: LabelledImage
    image_bgr: NDArray[np.uint8] = field(compare=False, repr=False)
    inspection: Inspection
    defect_mask: NDArray[np.bool_] | None = field(compare=False, repr=False)

    @property
    def is_wrong(self) -> bool:
        """True for a false alarm or a miss."""
        return (self.inspection.decision == "ng") != self.image.is_defective


def write_page(measurements: Sequence[Measurement], cases: Sequence[Case], path: Path) -> None:
    """Write the page to a file, making its folder if need be: one HTML file, no script, nothing fetched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(measurements, cases), encoding="utf-8", newline="\n")


def render_page(measurements: Sequence[Measurement], cases: Sequence[Case]) -> str:
    """Return the page as HTML: the table of all measurements, and plots and cases of the best one."""
    best = best_of(measurements)
    templates = ChoiceLoader([FileSystemLoader(Path(__file__).parent / "templates"), PackageLoader("backend.demo")])
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
    headings, cells = rows(measurements)
    winner = row_name(best, best.best_mode)
    groups = (
        ("Good parts that score highest", [_card(case) for case in cases if not case.image.is_defective]),
        ("Defective parts that score lowest", [_card(case) for case in cases if case.image.is_defective]),
    )
    return environment.get_template("accuracy.html").render(
        best=best,
        mode=mode_name(best.best_mode, best),
        aligned=aligned_text(best),
        figures=best.spreads(best.best_mode),
        caption=caption(measurements),
        headings=headings,
        rows=[(row, row[: len(winner)] == winner) for row in cells],
        kinds=kind_rows(measurements) if len(best.n_by_kind) > 1 else None,
        roc=_svg(roc_figure(best)),
        histograms=_svg(histogram_figure(best)),
        groups=[(heading, cards) for heading, cards in groups if cards],
        has_truth=any(case.defect_mask is not None for case in cases),
    )


def roc_figure(measurement: Measurement) -> Figure:
    """Return the ROC curves of every run, a style per score mode, with the two operating points of each mode."""
    figure, (axes,) = _figure(5.4, 5.6)
    for mode in measurement.modes:
        colour, line = _MODE_STYLES[mode]
        for run in measurement.runs:
            curve = roc_points(run.by_mode[mode].good, run.by_mode[mode].defective)
            axes.plot(*curve, color=colour, linestyle=line, linewidth=1.1, alpha=0.5)
        spreads = measurement.spreads(mode)
        label = f"{mode_name(mode, measurement)}, AUROC {figure_text(spreads['auroc'], False)}"
        axes.plot([], [], color=colour, linestyle=line, label=label)
        axes.plot(spreads["false_alarms"].mean, spreads["recall"].mean, "o", color=colour, **_MARKER)
        axes.plot(
            spreads["fit_image_false_alarms"].mean, spreads["fit_image_recall"].mean, "X", color=colour, **_MARKER
        )
    axes.plot([], [], "o", color="#666666", label="at the service's threshold", **_MARKER)
    axes.plot([], [], "X", color="#666666", label="at a threshold from fit-image scores", **_MARKER)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set(xlabel="false alarms on unseen good parts", ylabel="defective parts found")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def histogram_figure(measurement: Measurement) -> Figure:
    """Return the scores of the first run with the two thresholds, a panel per score mode."""
    modes = measurement.modes
    figure, panels = _figure(8.2, 0.6 + 1.7 * len(modes), n_rows=len(modes))
    for axes, mode in zip(panels, modes, strict=True):
        scores = measurement.runs[0].by_mode[mode]
        groups = (("good", scores.good, _OK_COLOUR, ""), ("defective", scores.defective, _NG_COLOUR, "////"))
        edges = np.linspace(
            min(scores.fit_image_threshold, *scores.good, *scores.defective),
            max(scores.threshold, *scores.good, *scores.defective),
            41,
        )
        for label, values, colour, hatch in groups:
            bars: dict[str, Any] = {
                "color": colour,
                "hatch": hatch,
                "alpha": 0.75,
                "edgecolor": "white",
                "linewidth": 0.6,
            }
            axes.hist(values, edges.tolist(), label=f"{label} ({len(values)})", **bars)
        axes.axvline(scores.threshold, color="#111111", linewidth=2, label="the service's threshold")
        dashes: dict[str, Any] = {"color": "#111111", "linewidth": 1.4, "linestyle": (0, (4, 3))}
        axes.axvline(scores.fit_image_threshold, label="threshold from fit-image scores", **dashes)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylabel(mode_name(mode, measurement))
    panels[-1].set_xlabel("image score (larger = more anomalous)")
    legend = panels[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def _figure(width_in: float, height_in: float, *, n_rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, one above the other."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        panels = [figure.add_subplot(n_rows, 1, row + 1) for row in range(n_rows)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _svg(figure: Figure) -> Markup:
    text = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return Markup(svg[svg.index("<svg") :])


def _card(case: Case) -> dict[str, Any]:
    found = case.inspection
    height, width = case.image_bgr.shape[:2]
    contours = [np.asarray(region.contour_xy).reshape(-1, 2) for region in found.regions]
    truth: Sequence[NDArray[Any]] = ()
    if case.defect_mask is not None:
        outlines, _ = cv2.findContours(case.defect_mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        truth = [outline.reshape(-1, 2) for outline in outlines]
    return {
        "name": case.image.name,
        "is_defective": case.image.is_defective,
        "is_wrong": case.is_wrong,
        "decision": found.decision,
        "score": found.score,
        "threshold": found.threshold,
        "gauge_percent": round(100 * min(found.score / (2 * (found.threshold or 1.0)), 1.0), 1),
        "width": width,
        "height": height,
        "picture": _data_uri(case.image_bgr),
        "overlay": _data_uri(paint_heatmap(case.image_bgr, found.heatmap)),
        "found_path": _path(contours),
        "truth_path": _path(truth),
    }


def _path(outlines: Sequence[NDArray[Any]]) -> str:
    """Return an SVG path through pixel centres, which lie at half coordinates there."""
    return " ".join("M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in outline) + "Z" for outline in outlines)


def _data_uri(image_bgr: NDArray[np.uint8]) -> str:
    height, width = image_bgr.shape[:2]
    scale = min(1.0, _PICTURE_EDGE_PX / max(height, width))
    small = cv2.resize(image_bgr, (round(scale * width), round(scale * height)), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode('ascii')}"
