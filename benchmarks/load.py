"""How a real server holds up: several clients at once, with and without a fit, and /health meanwhile.

    python -m benchmarks.load [--seconds 8] [--clients 1 4 16] [--json load.json] [--update docs/performance.md]

Every client sends its next inspection when it has the answer to the last one (a closed loop). Three loads beside them:

- ``none``;
- ``extracting``: a fit of images that the ROI has not seen, one after the other. Inspections go first on the device, so
  under clients that never pause it waits;
- ``picking``: fits of images that are stored with their embeddings, at ever other coreset rates, one after the other:
  nothing to extract, all arithmetic, on threads of its own beside the device's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from backend.demo.client import CallFailed
from backend.demo.samples import render_good
from backend.demo.service_process import ServiceFailed
from backend.errors import InspectionError
from backend.imaging.image_codec import encode_png
from backend.settings import Settings
from benchmarks.load_clients import FITS, HEALTH_MS, LOAD_ROI, REFIT_ROI, Measured, Plan, measure
from benchmarks.machine import cuda_device, describe, markdown, network_facts, update_block, write_json
from benchmarks.seeded_weights import weights_for_benchmarks
from benchmarks.servers import MM_PER_PX, SERVICE, inspect, learn, roi, serving

_HEADINGS = ("clients", "fit", "images/s", "p50, p95, p99 ms", "n", "/health p99 ms", "fits, 503s", "limit")


def cells(rows: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Return the table's cells."""
    return [
        (
            f"{row.device}, {row.clients}",
            row.fit,
            f"{row.images_per_s:.2f}",
            ", ".join(f"{value:.0f}" for value in row.latency_ms),
            str(row.n_inspections),
            f"{row.health_p99_ms:.1f}",
            f"{row.n_fits}, {row.n_refused}",
            f"{'met' if row.is_met else 'MISSED'}: ≤ {HEALTH_MS:g} ms" if row.has_limit else "",
        )
        for row in rows
    ]


def main(argv: Sequence[str] | None = None, *, console: Console | None = None) -> int:
    """Run the command line; return 0 when every limit is met, 1 when one is missed or nothing can be measured."""
    console = console or Console()
    arguments = _parser().parse_args(argv)
    plan = Plan(
        size_px=arguments.size,
        n_images=arguments.images,
        seconds=arguments.seconds,
        clients=tuple(arguments.clients),
        fits=tuple(arguments.fits),
        extractor=arguments.extractor,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="load-", ignore_cleanup_errors=True) as scratch:
            weights = weights_for_benchmarks(Path(scratch), named=arguments.weights or Settings().weights)
            facts = network_facts(weights)
            rows = _measure_all(plan, Path(scratch), weights.path, console)
    except (InspectionError, OSError, ServiceFailed, CallFailed) as error:
        console.print(str(error), markup=False)
        return 1
    table = Table(*(Column(heading, overflow="fold") for heading in _HEADINGS), title="Inspections over HTTP")
    for row, line in zip(rows, cells(rows), strict=True):
        table.add_row(*line, style="bold red" if row.has_limit and not row.is_met else "")
    console.print(table)
    remarks = ["Each client sends its next inspection when it has the answer to the last."]
    if cuda_device() is None:
        remarks.append("CUDA: not measured, no CUDA device.")
    text = f"{markdown(_HEADINGS, cells(rows))}\n\n{' '.join(remarks)} {describe(facts)}"
    console.print(*remarks, describe(facts), markup=False, highlight=False)
    if arguments.json is not None:
        write_json(arguments.json, facts, [asdict(row) | {"is_met": row.is_met} for row in rows])
    if arguments.update is not None:
        update_block(arguments.update, "load", text)
    return 0 if all(row.is_met for row in rows if row.has_limit) else 1


def _measure_all(plan: Plan, folder: Path, weights: Path, console: Console) -> list[Measured]:
    devices = ["cpu", *(["cuda"] if cuda_device() else [])]
    pngs = [
        encode_png(render_good(seed, size_px=plan.size_px, mm_per_px=MM_PER_PX).image_bgr)
        for seed in range(plan.n_images)
    ]
    found = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(devices) * len(plan.fits) * len(plan.clients))
        for device in devices:
            settings: dict[str, object] = {
                "models_dir": folder / f"models-{device}",
                "extractor": plan.extractor,
                "weights": weights,
                "device": device,
                "input_size": plan.size_px,
            }
            with serving(SERVICE, folder, settings=settings) as running:
                progress.update(task, description=f"{device}: starting")
                running.seconds_until_ready()
                with running.caller() as caller:
                    for roi_id in (LOAD_ROI, REFIT_ROI):
                        caller.send(learn(roi_id, pngs)).ok()
                    caller.post("/calibrate_ng", roi(LOAD_ROI)).ok()
                    caller.send(inspect(LOAD_ROI, pngs[0])).ok()
                for fit, clients in itertools.product(plan.fits, plan.clients):
                    progress.update(task, description=f"{device}: {clients} clients, fit: {fit}")
                    found.append(measure(running, plan, device.upper(), clients, fit, pngs))
                    progress.advance(task)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--seconds", type=float, default=Plan.seconds, help="how long each combination is measured (%(default)s)")
    add("--clients", type=int, nargs="+", default=list(Plan.clients), help="numbers of clients (1 4 16)")
    add("--fits", nargs="+", choices=FITS, default=list(FITS), help="what else goes on; all three by default")
    add("--size", type=int, default=Plan.size_px, help="edge of the images and of the network input, px (%(default)s)")
    add("--images", type=int, default=Plan.n_images, help="good images of a fit (%(default)s)")
    add("--extractor", choices=("dinov2", "filter-bank"), default=Plan.extractor, help="(%(default)s)")
    add("--weights", type=Path, help="weights of DINOv2; by default as the service finds them, else seeded ones")
    add("--json", type=Path, metavar="OUT", help="write every figure and the facts of the machine")
    add("--update", type=Path, metavar="DOCUMENT", help="put the table between <!-- load --> and <!-- /load -->")
    return parser


if __name__ == "__main__":
    sys.exit(main())
