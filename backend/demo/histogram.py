"""A histogram of the scores of good and defective parts, as an SVG that stands inside a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from backend.demo.inspected import Inspected

_OK_COLOUR, _NG_COLOUR = "#0072B2", "#D55E00"  # Okabe and Ito 2008: told apart by every kind of colour vision.


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
