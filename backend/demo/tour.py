"""A tour of the service: starts the real server, drives it over HTTP as a client would, and leaves a page to look at.

Without a folder the parts are rendered (``backend.demo.samples``); with one they are real images in the layout of the
public benchmarks: ``train/good``, ``test/good``, ``test/<defect>``, and ``ground_truth/<defect>/*_mask.png`` if known.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from backend.demo.client import CallFailed, Client, Form, fit_form, infer_form
from backend.demo.demo_parts import DemoError, Part, PartSet, folder_parts, rendered_parts
from backend.demo.inspected import Inspected, tally
from backend.demo.report import Report, write_report
from backend.demo.service_process import PLAIN_UVICORN, ServiceFailed, ServiceProcess, environment_with
from backend.errors import InspectionError
from backend.roi_mask import shape_fields, shape_mask

_ROI = {"role_id": "Demo", "roi_id": "part-1"}
_N_NG_FOR_CALIBRATION = 2
_SCORE_MODE = "top_mean"  # p99 cannot see a defect that covers less than 1 % of the ROI
_CALL_S = 900.0


def run_demo(
    *,
    data: Path | None = None,
    out: Path = Path("demo_output"),
    n_good: int = 30,
    keep_models: bool = False,
    mm_per_px: float = 0.2,
    console: Console | None = None,
) -> int:
    """Run the demo and return the exit code: 0, or 1 when something failed.

    Args:
        data: Folder of real images; None renders parts.
        out: Folder for ``index.html`` and the server's log.
        n_good: How many good parts to render; three quarters are learned from, the others held out; at least 8.
        keep_models: Keep the fitted model in ``out/models``; otherwise it goes away with the demo.
        mm_per_px: Millimetres per pixel; positive.
        console: Where to print; standard output by default.
    """
    if console is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # A code page without × must not end the demo.
        console = Console(width=None if sys.stdout.isatty() else 110)  # A file has room for the whole table.
    page = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="roi-inspector-", ignore_cleanup_errors=True) as passing:
            models_dir = (out / "models").resolve() if keep_models else Path(passing)
            with _server(models_dir, out / "server.log") as server:
                with _progress(console) as progress:
                    progress.add_task("preparing images, starting the server", total=None)
                    server.launch()
                    parts = rendered_parts(n_good, mm_per_px) if data is None else folder_parts(data, mm_per_px)
                    health = server.wait_until_ready()
                _say(console, extractor_line(health, os.environ.get("BDI_EXTRACTOR")))
                with server.client(timeout_s=_CALL_S) as client:
                    report = _tour(Api(client, parts), health, console)
        write_report(report, page)
    except KeyboardInterrupt:
        _say(console, "Interrupted. The server was stopped.")
        return 1
    except (DemoError, ServiceFailed, CallFailed, InspectionError, OSError, ValueError) as error:
        _say(console, f"The demo failed: {error}", style="bold red")
        _say(console, f"The server's log: {out / 'server.log'}")
        return 1
    _say(console, summary_line(report.items), style="bold")
    _say(console, f"Page: {page.resolve()}")
    return 0


def _server(models_dir: Path, log: Path) -> ServiceProcess:
    log.unlink(missing_ok=True)
    settings = {"models_dir": models_dir, "extractor": os.environ.get("BDI_EXTRACTOR", "auto")}
    return ServiceProcess(log, environment_with(settings, inherit=True), command=PLAIN_UVICORN)


def extractor_line(health: Mapping[str, Any], chosen: str | None) -> str:
    """Return which extractor runs and why.

    Args:
        health: The answer of ``GET /health``.
        chosen: What the user has set ``BDI_EXTRACTOR`` to, if anything.
    """
    why = health.get("reason") or (
        f"chosen by BDI_EXTRACTOR={chosen}" if chosen not in (None, "auto") else "its weights were found"
    )
    return f"Extractor: {health['model']} on {health['device']} ({why.rstrip('.')})"


def summary_line(items: Sequence[Inspected]) -> str:
    """Return how many decisions were right."""
    counts = tally(items)
    line = (
        f"{counts.n_passed} of {counts.n_good} unseen good parts passed, "
        f"{counts.n_found} of {counts.n_defective} unseen defects were found."
    )
    if counts.n_aside:
        line += (
            f" Not counted: {counts.n_aside} that helped to set the threshold, {counts.n_aside_right} of them found."
        )
    return line


def result_table(items: Sequence[Inspected]) -> Table:
    """Return the table that is printed: one row per image."""
    table = Table("image", "score", "threshold", "decision", "regions, mm²", "ms", header_style="bold")
    for column in table.columns:
        column.no_wrap, column.justify = True, "right"
    table.columns[0].justify = "left"
    for item in items:
        style = {"passed": "green", "found": "green", "not judged": "yellow"}.get(item.outcome, "bold red")
        areas = sorted((region.area_mm2 for region in item.regions), reverse=True)
        table.add_row(
            escape(item.name),
            f"{item.score:.3f}",
            "-" if item.threshold is None else f"{item.threshold:.3f}",
            f"[{style}]{(item.decision or '-').upper()} ({item.outcome})[/]",
            ", ".join(f"{area:.1f}" for area in areas[:2]) + (f" +{len(areas) - 2}" if len(areas) > 2 else "") or "-",
            f"{item.elapsed_ms:.0f}",
        )
    return table


class Api:
    """The three calls of the tour, as any client would make them; each raises as ``Client.ask`` and ``Answer.ok``."""

    def __init__(self, client: Client, parts: PartSet) -> None:
        self.parts = parts
        self._client = client
        self._roi: dict[str, object] = {**_ROI, "mm_per_px": parts.mm_per_px}
        self._shape = None if parts.ring is None else json.dumps(shape_fields(parts.ring))

    def fit(self) -> dict[str, Any]:
        """Learn the good parts, in place of whatever was learned before."""
        images = [(part.name, part.data) for part in self.parts.fit]
        return self._answer(fit_form(self._roi, images, shape=self._shape, mode="replace"))

    def calibrate(self, ng_scores: Sequence[float]) -> dict[str, Any]:
        """Set the threshold, from the service's own leave-one-image-out scores of the good parts."""
        body = {**self._roi, "ng_scores": list(ng_scores) or None, "score_mode": _SCORE_MODE}
        return dict(self._client.post("/calibrate_ng", body).ok())

    def infer(self, part: Part) -> dict[str, Any]:
        """Inspect one part."""
        return self._answer(infer_form(self._roi, (part.name, part.data), shape=self._shape))

    def _answer(self, form: Form) -> dict[str, Any]:
        return dict(self._client.send(form).ok())


def _tour(api: Api, health: Mapping[str, Any], console: Console) -> Report:
    """Fit, calibrate without and with NG, inspect everything; the page says the rest."""
    parts = api.parts
    if parts.remark:
        _say(console, parts.remark)
    step = max(1, len(parts.defective) // _N_NG_FOR_CALIBRATION)
    for_calibration = parts.defective[::step][:_N_NG_FOR_CALIBRATION]
    with _progress(console) as progress:
        learning = progress.add_task(f"learning {len(parts.fit)} good images", total=None)
        fit = api.fit()
        progress.update(learning, total=len(parts.fit), completed=len(parts.fit))
        inspecting = progress.add_task("inspecting", total=len(parts.good) + len(parts.defective))
        calibrations = [api.calibrate([])]
        calibrations.append(api.calibrate([api.infer(part)["score"] for part in for_calibration]))
        items = []
        for part in (*parts.good, *parts.defective):
            item = Inspected.from_answer(
                api.infer(part),
                name=part.name,
                is_defective=part.is_defective,
                image_bgr=part.image_bgr,
                inspected_mask=None if parts.ring is None else shape_mask(parts.ring, part.image_bgr.shape[:2]),
                defect_mask=part.defect_mask,
                note="Its score helped to set the threshold, so it is not counted." if part in for_calibration else "",
            )
            items.append(item)
            progress.advance(inspecting)
    console.print(result_table(items))
    return _report(parts, health, fit, calibrations, items)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _report(
    parts: PartSet,
    health: Mapping[str, Any],
    fit: Mapping[str, Any],
    calibrations: Sequence[Mapping[str, Any]],
    items: Sequence[Inspected],
) -> Report:
    n_ng = calibrations[-1]["n_ng"]
    thresholds = tuple(
        (name, float(calibration["threshold"]))
        for name, calibration in zip(("from good parts alone", f"with {n_ng} NG"), calibrations, strict=True)
    )
    facts = [
        ("Extractor", f"{health['model']} on {health['device']}"),
        ("Learned from", f"{fit['n_ok_total']} good images"),
        ("Memory", f"{fit['coreset_size']} of {fit['n_embeddings']} patches"),
        ("Patch grid", "{} × {}".format(*fit["token_shape"])),
        ("Score of an image", "mean of the hottest 1 % of its pixels"),
        ("Scale", f"{parts.mm_per_px:g} mm per pixel"),
    ]
    for name, threshold in thresholds:
        judged = tally([item.judged_by(threshold) for item in items])
        right = f"{judged.n_passed} of {judged.n_good} passed, {judged.n_found} of {judged.n_defective} found"
        facts.append((f"Threshold {name}", f"{threshold:.3f}: {right}"))
    expected, at_most = (
        calibrations[-1][bound] for bound in ("expected_false_alarm_rate", "false_alarm_rate_upper_95")
    )
    facts.append(("False alarms to expect", f"{100 * expected:.1f} %, at most {100 * at_most:.1f} % (95 % sure)"))
    return Report(
        title="Inspection demo",
        lead=f"{parts.title}: {len(parts.good)} good and {len(parts.defective)} defective parts, after learning from "
        f"{len(parts.fit)} other good ones. The scores of {n_ng} of the defective ones helped to set the threshold.",
        caution=str(health.get("reason") or ""),
        facts=tuple(facts),
        notes=tuple(dict.fromkeys(str(note) for answer in (fit, *calibrations) for note in answer["warnings"])),
        thresholds=thresholds,
        items=tuple(items),
    )
