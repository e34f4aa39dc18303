"""A tour of the service: starts the real server, drives it over HTTP as a client would, and leaves a page to look at.

Without a folder the parts are rendered (``backend.demo.samples``); with one they are real images in the layout of the
public benchmarks: ``train/good``, ``test/good``, ``test/<defect>``, and ``ground_truth/<defect>/*_mask.png`` if known.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from backend.demo.api import Api
from backend.demo.client import CallFailed
from backend.demo.demo_parts import PartSet, folder_parts, rendered_parts
from backend.demo.inspected import Inspected, tally
from backend.demo.report import Report, render_report
from backend.demo.service_process import PLAIN_UVICORN, ServiceFailed, ServiceProcess, environment_with
from backend.errors import InspectionError

_N_NG_FOR_CALIBRATION = 2
_CALL_S = 900.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What the service answered to the calls of the tour.

    Attributes:
        parts: What it was shown.
        fit: The answer of ``POST /fit_ok``.
        calibrations: The answers of ``POST /calibrate_ng``, without NG and with; the last one is in force.
        items: The parts that were inspected, with the answers.
    """

    parts: PartSet
    fit: Mapping[str, Any]
    calibrations: Sequence[Mapping[str, Any]]
    items: Sequence[Inspected]


def run_demo(
    *,
    data: Path | None,
    out: Path,
    n_good: int,
    mm_per_px: float,
    keep_models: bool,
    seed: int | None = None,
    serves: bool = False,
) -> int:
    """Run the demo with the options of the command line; return the exit code: 0, or 1 when something failed.

    With ``serves`` the server then runs on, with the ROI, its decisions and their images, until it is interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # A code page without × must not end the demo.
    console = Console(width=None if sys.stdout.isatty() else 110)  # A file has room for the whole table.
    page, log, is_done = out / "index.html", out / "server.log", False
    extractor = os.environ.get("BDI_EXTRACTOR", "auto")
    try:
        if data is not None and seed is not None:
            raise ValueError("--seed chooses rendered parts; it has no effect beside --data.")
        out.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="roi-inspector-", ignore_cleanup_errors=True) as passing:
            models_dir = (out / "models").resolve() if keep_models else Path(passing)
            settings: dict[str, object] = {"models_dir": models_dir, "extractor": extractor}
            environment = {**os.environ, **environment_with(settings | ({"audit": True} if serves else {}))}
            with ServiceProcess(log, environment, command=PLAIN_UVICORN) as server:
                with _progress(console) as progress:
                    progress.add_task("preparing images, starting the server", total=None)
                    server.launch()
                    if data is None:
                        parts = rendered_parts(n_good, mm_per_px, seed=seed or 0)
                    else:
                        parts = folder_parts(data, mm_per_px)
                    health = server.wait_until_ready()
                _say(console, extractor_line(health, extractor))
                if parts.remark:
                    _say(console, parts.remark)
                with server.client(timeout_s=_CALL_S) as client, _progress(console) as progress:
                    findings = take_tour(Api(client, parts), _tick(progress), keeps_bad=serves)
                page.write_text(render_report(_report(findings, health)), encoding="utf-8", newline="\n")
                _show(console, findings, page)
                is_done = True
                if serves:
                    _say(console, f"The engineer's page: http://127.0.0.1:{server.port}/ui", style="bold")
                    _say(console, "It is there until you press Ctrl-C.")
                    server.process.wait()
                    raise ServiceFailed("the server ended by itself")
    except KeyboardInterrupt:
        _say(console, "The server was stopped." if is_done else "Interrupted. The server was stopped.")
        return 0 if is_done else 1
    except (ServiceFailed, CallFailed, InspectionError, OSError, ValueError) as error:
        _say(console, f"The demo failed: {error}", style="bold red")
        _say(console, f"The server's log: {log}")
        return 1
    return 0


def _show(console: Console, findings: Findings, page: Path) -> None:
    console.print(result_table(findings.items))
    _say(console, settings_line(findings))
    _say(console, summary_line(findings.items), style="bold")
    _say(console, f"Page: {page.resolve()}")


def extractor_line(health: Mapping[str, Any], chosen: str) -> str:
    """Return which extractor runs and why, from the answer of ``GET /health`` and the setting ``BDI_EXTRACTOR``."""
    why = health["reason"] or ("its weights were found" if chosen == "auto" else f"chosen by BDI_EXTRACTOR={chosen}")
    return f"Extractor: {health['model']} on {health['device']} ({why.rstrip('.')})"


def summary_line(items: Sequence[Inspected]) -> str:
    """Return how many decisions were right."""
    counts = tally(items)
    line = (
        f"{counts.n_passed} of {counts.n_good} unseen good parts passed, "
        f"{counts.n_found} of {counts.n_defective} unseen defects were found"
    )
    line += (
        f", {counts.n_on_defect} of {counts.n_place_known} with a region on the defect."
        if counts.n_place_known
        else "."
    )
    if counts.n_aside:
        line += (
            f" Not counted: {counts.n_aside} that helped to set the threshold, {counts.n_aside_right} of them found."
        )
    return line


def settings_line(findings: Findings) -> str:
    """Return which score mode the service chose by itself, and whether it takes the ROI for aligned."""
    return f"Score of an image: {score_text(findings.calibrations[-1])}. ROI aligned: {aligned_text(findings.fit)}."


def score_text(calibration: Mapping[str, Any]) -> str:
    """Return what the score of an image is, from the answer of a calibration: its name in the API, and in words."""
    percentile, area_mm2 = calibration["score_percentile"], calibration["area_mm2_thr"]
    words = {
        "percentile": f"the map's {percentile:g}th percentile",
        "top_mean": f"mean of the hottest {100 - percentile:g} % of its pixels",
        "max": "the map's largest value",
        "area": f"the highest level that a connected area of {area_mm2:g} mm² reaches",
    }
    mode = calibration["score_mode"]
    return f"{mode}, {words[mode]}"


def aligned_text(fit: Mapping[str, Any]) -> str:
    """Return whether the parts lie alike in the ROI, from the answer of a fit, with the figure that it rests on."""
    figure = "" if fit["alignment"] is None else f" ({fit['alignment']:.2f})"
    return ("yes" if fit["aligned"] else "no") + figure


def result_table(items: Sequence[Inspected]) -> Table:
    """Return the table that is printed: one row per image."""
    table = Table("image", "score", "threshold", "decision", "regions, mm²", "on defect", "ms", header_style="bold")
    places = {True: "yes", False: "no", None: "-"}
    for column in table.columns:
        column.no_wrap, column.justify = True, "right"
    table.columns[0].justify = "left"
    for item in items:
        style = "green" if item.is_right else "bold red"
        areas = sorted((region["area_mm2"] for region in item.regions), reverse=True)
        table.add_row(
            escape(item.part.name),
            f"{item.score:.3f}",
            f"{item.threshold:.3f}",
            f"[{style}]{item.decision.upper()} ({item.outcome})[/]",
            ", ".join(f"{area:.1f}" for area in areas[:2]) + (f" +{len(areas) - 2}" if len(areas) > 2 else "") or "-",
            places[item.region_on_defect],
            f"{item.elapsed_ms:.0f}",
        )
    return table


def take_tour(
    api: Api, tick: Callable[[str, int, int], None] = lambda *_: None, *, keeps_bad: bool = False
) -> Findings:
    """Fit, calibrate without and with NG, inspect everything; prints nothing.

    Args:
        api: The calls, and the parts. Its ROI has no calibration yet, or one that the tour made.
        tick: Called with what is done, how many images it was done to, and how many there are.
        keeps_bad: Store the bad parts that set the threshold, for the engineer's page to show.

    Raises:
        CallCutOff, CallFailed: If a call was not answered as it should be.
    """
    parts = api.parts
    step = max(1, len(parts.defective) // _N_NG_FOR_CALIBRATION)
    for_calibration = parts.defective[::step][:_N_NG_FOR_CALIBRATION]
    learning, inspecting = f"learning {len(parts.fit)} good images", "inspecting"
    tick(learning, 0, len(parts.fit))
    fit = api.fit()
    tick(learning, len(parts.fit), len(parts.fit))
    # In this order: NG scores that a call sends count as measured in the mode in force, which the first call chooses.
    calibrations = [api.calibrate([])]
    calibrations.append(api.calibrate([api.infer(part)["score"] for part in for_calibration]))
    items: list[Inspected] = []
    shown = [*parts.good, *parts.defective]
    for part in shown:
        note = "Its score helped to set the threshold, so it is not counted." if part in for_calibration else ""
        items.append(Inspected.from_answer(api.infer(part), part, note))
        tick(inspecting, len(items), len(shown))
    if keeps_bad:
        api.keep_bad(for_calibration)
    return Findings(parts=parts, fit=fit, calibrations=calibrations, items=items)


def _tick(progress: Progress) -> Callable[[str, int, int], None]:
    """Return what shows each kind of work in a line of its own; how far a fit is shows only when it is done."""
    tasks: dict[str, TaskID] = {}

    def tick(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=None)
        progress.update(tasks[what], completed=done, total=total if done else None)

    return tick


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _report(findings: Findings, health: Mapping[str, Any]) -> Report:
    parts, fit, items = findings.parts, findings.fit, findings.items
    in_force = findings.calibrations[-1]
    n_ng = in_force["n_ng"]
    labels = ("from good parts alone", f"with {n_ng} NG")
    thresholds = [
        (label, float(calibration["threshold"]))
        for label, calibration in zip(labels, findings.calibrations, strict=True)
    ]
    facts = [
        ("Extractor", f"{health['model']} on {health['device']}"),
        ("Learned from", f"{fit['n_ok_total']} good images"),
        ("Memory", f"{fit['coreset_size']} of {fit['n_embeddings']} patches"),
        ("Patch grid", "{} × {}".format(*fit["token_shape"])),
        ("ROI aligned", aligned_text(fit)),
        ("Score of an image", score_text(in_force)),
        ("Scale", f"{parts.mm_per_px:g} mm per pixel"),
    ]
    for label, threshold in thresholds:
        judged = tally([item.judged_by(threshold) for item in items])
        right = f"{judged.n_passed} of {judged.n_good} passed, {judged.n_found} of {judged.n_defective} found"
        facts.append((f"Threshold {label}", f"{threshold:.3f}: {right}"))
    expected, at_most = in_force["expected_false_alarm_rate"], in_force["false_alarm_rate_upper_95"]
    facts.append(("False alarms to expect", f"{100 * expected:.1f} %, at most {100 * at_most:.1f} % (95 % sure)"))
    return Report(
        lead=f"{parts.title}: {len(parts.good)} good and {len(parts.defective)} defective parts, after learning from "
        f"{len(parts.fit)} other good ones. The scores of {n_ng} of the defective ones helped to set the threshold.",
        caution=health["reason"] or "",
        facts=facts,
        notes=list(dict.fromkeys(note for answer in (fit, *findings.calibrations) for note in answer["warnings"])),
        thresholds=thresholds,
        items=items,
    )
