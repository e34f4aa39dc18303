"""What was measured, as tables: for the terminal and for a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from backend.calib import ScoreMode
from benchmarks.metrics import AUPRO_LIMIT, Measurement, Spread

_COLUMNS: tuple[tuple[str, str, bool], ...] = (
    ("auroc", "image AUROC", False),
    ("f1_max", "F1-max", False),
    ("false_alarms", "false alarms", True),
    ("recall", "recall", True),
    ("fit_image_false_alarms", "false alarms †", True),
    ("fit_image_recall", "recall †", True),
    ("pixel_auroc", "pixel AUROC", False),
    ("aupro", f"AUPRO@{100 * AUPRO_LIMIT:.0f} %", False),
)
_RUN_HEADINGS = ("shots", "input", "coreset", "aligned", "score")
_DAGGER = (
    "†: had the threshold been set from the scores of the learned images as they come out of the memory that was built "
    "from them, leaving nothing out."
)
_STAR = "*: the score that the service chooses by itself for the first calibration of a ROI."


def caption(measurements: Sequence[Measurement]) -> str:
    """Return one sentence for each thing that a reader of the figures must know."""
    first, n_runs = measurements[0], len(measurements[0].runs)
    runs = [measurement.runs[0] for measurement in measurements]
    drawn = "train/good and test/good together" if first.pooled else "train/good"
    several_inputs = len({measurement.extractor_id for measurement in measurements}) > 1
    expected = _either(f"{100 * run.bounds.expected_false_alarm_rate:.1f}" for run in runs)
    at_most = _either(f"{100 * run.bounds.false_alarm_rate_upper_95:.1f}" for run in runs)
    sentences = [
        f"{first.dataset}: {_either(len(run.fit) for run in runs)} good images drawn from {drawn}, "
        f"{_either(len(run.good) for run in runs)} unseen good and {_either(len(run.defective) for run in runs)} "
        "defective ones inspected, "
        + (f"mean ± standard deviation over {n_runs} draws." if n_runs > 1 else "one draw."),
        f"Images of {first.image_hw[1]}×{first.image_hw[0]} px, {first.settings['mm_per_px']:g} mm each; extractor "
        f"{first.extractor_id} in {first.precision}"
        + (", and the same with the other inputs." if several_inputs else "."),
        f"The service promises for its threshold {expected} % false alarms on average, and with 95 % confidence no "
        f"more than {at_most} %.",
        _DAGGER,
    ]
    if first.default_mode in first.modes:
        sentences.append(_STAR)
    if first.n_resized:
        sentences.insert(2, f"{first.n_resized} images were of another size and were brought to this one.")
    n_seen = max(run.n_seen for measurement in measurements for run in measurement.runs)
    if n_seen:
        sentences.insert(1, f"Up to {n_seen} test images were pixel for pixel among the learned ones and left out.")
    return " ".join(sentences)


def rows(measurements: Sequence[Measurement]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of the table, one row per measurement and score mode."""
    known = {name for measurement in measurements for name in measurement.spreads(measurement.modes[0])}
    columns = [column for column in _COLUMNS if column[0] in known]
    cells = []
    for measurement in measurements:
        for mode in measurement.modes:
            spreads = measurement.spreads(mode)
            values = [figure_text(spreads[name], is_rate) if name in spreads else "" for name, _, is_rate in columns]
            cells.append([*row_name(measurement, mode), *values])
    return [*_RUN_HEADINGS, *(heading for _, heading, _ in columns)], cells


def kind_rows(measurements: Sequence[Measurement]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of the recall by kind of defect, one row per measurement in one score mode.

    It is the one that the service chooses by itself, or where that was not measured the one with the largest AUROC.
    """
    n_by_kind = measurements[0].n_by_kind
    cells = []
    for measurement in measurements:
        mode = measurement.default_mode if measurement.default_mode in measurement.modes else measurement.best_mode
        recalls = measurement.recall_by_kind(mode)
        cells.append([*row_name(measurement, mode), *(figure_text(recalls[kind], True) for kind in n_by_kind)])
    return [*_RUN_HEADINGS, *(f"{kind.replace('_', ' ')} ({n})" for kind, n in n_by_kind.items())], cells


def row_name(measurement: Measurement, mode: ScoreMode) -> list[str]:
    """Return the cells that tell a row from the others: shots, input, coreset, aligned, score."""
    star = " *" if mode == measurement.default_mode else ""
    rate = f"{100 * measurement.settings['coreset_rate']:g} %"
    return [
        f"{measurement.shots}",
        f"{measurement.settings['input_size']}",
        rate,
        aligned_text(measurement),
        mode_name(mode, measurement) + star,
    ]


def aligned_text(measurement: Measurement) -> str:
    """Return whether the fits took the ROI for aligned, with ``(auto)`` where they were asked to find out."""
    aligned = sum(run.aligned for run in measurement.runs)
    text = {0: "no", len(measurement.runs): "yes"}.get(aligned, f"{aligned} of {len(measurement.runs)}")
    return f"{text} (auto)" if measurement.settings.get("aligned") == "auto" else text


def mode_name(mode: ScoreMode, measurement: Measurement) -> str:
    """Return what people call a score mode."""
    percentile = measurement.settings["score_percentile"]
    names: dict[ScoreMode, str] = {
        "percentile": f"p{percentile:g}",
        "top_mean": f"mean of top {100 - percentile:g} %",
        "max": "max",
        "area": f"level of {measurement.settings['area_mm2_thr']:g} mm²",
    }
    return names[mode]


def figure_text(spread: Spread, is_rate: bool) -> str:
    """Return mean ± deviation, a rate in percent."""
    scale, digits = (100, 1) if is_rate else (1, 3)
    text = f"{scale * spread.mean:.{digits}f}"
    if spread.deviation is not None:
        text += f" ± {scale * spread.deviation:.{digits}f}"
    return f"{text} %" if is_rate else text


def rich_table(measurement: Measurement) -> Table:
    """Return the figures of one measurement for the terminal, a column per score mode."""
    headings, cells = rows([measurement])
    shots, size, rate, aligned, _ = cells[0][: len(_RUN_HEADINGS)]
    title = f"{measurement.dataset}, {shots} shots, input {size} px, coreset {rate}, aligned: {aligned}"
    names = [row[len(_RUN_HEADINGS) - 1] for row in cells]
    table = Table("", *names, title=title, caption=caption([measurement]), caption_justify="left")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for index, heading in enumerate(headings[len(_RUN_HEADINGS) :], start=len(_RUN_HEADINGS)):
        table.add_row(heading, *(row[index] for row in cells))
    if len(measurement.n_by_kind) > 1:
        recalls = [measurement.recall_by_kind(mode) for mode in measurement.modes]
        for kind, n in measurement.n_by_kind.items():
            table.add_row(
                f"recall, {kind.replace('_', ' ')} ({n})", *(figure_text(by_kind[kind], True) for by_kind in recalls)
            )
    return table


def markdown_table(measurements: Sequence[Measurement]) -> str:
    """Return the same for a document: the table, its caption, and the recall by kind where there is more than one."""
    parts = [_markdown(*rows(measurements))]
    parts.append(caption(measurements))
    if len(measurements[0].n_by_kind) > 1:
        parts += ["Recall by kind of defect, and how many there are of each:", _markdown(*kind_rows(measurements))]
    return "\n\n".join(parts)


def _either(values: Iterable[object]) -> str:
    """Return the different values in a row: ``20``, ``20 or 50``, ``20, 30 or 50``."""
    *others, last = dict.fromkeys(str(value) for value in values)
    return f"{', '.join(others)} or {last}" if others else last


def _markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    left = {"aligned", "score"}
    rules = ["---" if heading in left else "---:" for heading in headings]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, rules, *cells))
