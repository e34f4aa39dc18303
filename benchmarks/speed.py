"""How fast the service is beside plain implementations of the same work, on this machine.

    python -m benchmarks.speed [--rows extract nearest …] [--json speed.json] [--update docs/performance.md]

Contenders take turns, so that whatever else the machine does meets both; a ratio is the median over the rounds of the
ratio within a round. Both must come to the same result, or the row says so and counts as missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from backend.errors import InspectionError
from backend.settings import Settings
from benchmarks.machine import describe, markdown, network_facts, update_block, write_json
from benchmarks.process_rows import local_search_rows, rest_rows, start_and_memory_rows
from benchmarks.seeded_weights import weights_for_benchmarks
from benchmarks.speed_rows import coreset_row, cuda_rows, extract_row, fit_row, infer_row, nearest_rows
from benchmarks.workbench import Plan, Row, Workbench

_HEADINGS = ("work", "service", "reference", "ratio", "rounds", "limit", "remark")

ROWS: dict[str, Callable[[Workbench], Sequence[Row]]] = {
    "extract": lambda bench: [extract_row(bench)],
    "infer": lambda bench: [infer_row(bench)],
    "nearest": nearest_rows,
    "coreset": lambda bench: [coreset_row(bench)],
    "fit": lambda bench: [fit_row(bench)],
    "local": local_search_rows,
    "rest": rest_rows,
    "process": start_and_memory_rows,
    "cuda": cuda_rows,
}


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the table's cells."""
    return [
        (
            row.work,
            _quantity(row.service, row.unit),
            _quantity(row.reference, row.unit),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.spread is None else f"{row.spread[0]:.2f}–{row.spread[1]:.2f} ({row.n_rounds})",
            "" if row.limit is None else f"{'met' if row.is_met else 'MISSED'}: {row.limit_text}",
            row.remark,
        )
        for row in rows
    ]


def rich_table(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal."""
    columns = (Column(heading, overflow="fold") for heading in _HEADINGS)
    table = Table(*columns, title="Speed beside plain implementations")
    for row, line in zip(rows, cells(rows), strict=True):
        table.add_row(*line, style="" if row.limit is None or row.is_met else "bold red")
    return table


def main(argv: Sequence[str] | None = None, *, console: Console | None = None, plan: Plan | None = None) -> int:
    """Run the command line; return 0 when every limit is met, 1 when one is missed or nothing can be measured."""
    console = console or Console()
    arguments = _parser().parse_args(argv)
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="speed-", ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch)
            named = arguments.weights or Settings().weights
            weights = weights_for_benchmarks(folder, named=named)
            facts = network_facts(weights)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with (
                Progress(*columns, console=console, transient=True) as progress,
                Workbench(plan or Plan(), folder, weights.path) as bench,
            ):
                task = progress.add_task("", total=len(arguments.rows))
                for name in arguments.rows:
                    progress.update(task, description=name)
                    rows.extend(ROWS[name](bench))
                    progress.advance(task)
    except InspectionError as error:
        console.print(str(error), markup=False)
        return 1
    console.print(rich_table(rows))
    text = f"{markdown(_HEADINGS, cells(rows))}\n\n{describe(facts)}"
    console.print(describe(facts), markup=False, highlight=False)
    if arguments.markdown:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if arguments.json is not None:
        write_json(arguments.json, facts, [asdict(row) | {"is_met": row.is_met} for row in rows])
    if arguments.update is not None:
        update_block(arguments.update, "speed", text)
    return 0 if all(row.limit is None or row.is_met for row in rows) else 1


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "ms" and value >= 10_000:
        value, unit = value / 1e3, "s"
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="what to measure; all by default")
    add("--weights", type=Path, help="weights of DINOv2; by default as the service finds them, else seeded ones")
    add("--json", type=Path, metavar="OUT", help="write every figure and the facts of the machine")
    add("--markdown", action="store_true", help="print the table as Markdown too")
    add("--update", type=Path, metavar="DOCUMENT", help="put the table between <!-- speed --> and <!-- /speed -->")
    return parser


if __name__ == "__main__":
    sys.exit(main())
