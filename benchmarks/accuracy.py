"""How well the service tells good parts from defective ones, on any folder in the layout of the public benchmarks.

python -m benchmarks.accuracy --data DIR [--extractor dinov2 --weights FILE] [--page page.html]
python -m benchmarks.accuracy --data DIR --extractor package.module:Class --coreset-rate 0.02 0.05 --aligned no auto
python -m benchmarks.accuracy --update docs/accuracy.md --root DIR
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from backend.calib import SCORE_MODES
from backend.errors import InspectionError
from backend.settings import Settings
from benchmarks.accuracy_page import Case, write_page
from benchmarks.accuracy_runs import MODES, Aligned, Plan, measure
from benchmarks.accuracy_tables import markdown_table, rich_table
from benchmarks.datasets import Dataset, DatasetError, read_dataset
from benchmarks.extractor_choice import OWN_EXTRACTORS, ExtractorError, takes_input_size
from benchmarks.metrics import Measurement, best_of

_BLOCK = re.compile(r"<!-- accuracy: (?P<options>.+?) -->\n.*?<!-- /accuracy -->", re.DOTALL)


def main(argv: Sequence[str] | None = None, *, console: Console | None = None) -> int:
    """Run the command line; return the exit status: 0, or 1 with a sentence about what is wrong."""
    console = console or Console()
    arguments = _parser().parse_args(argv)
    try:
        if arguments.update is not None:
            _update(arguments.update, arguments.root, console)
        else:
            _report(arguments, console)
    except ValidationError as error:
        for problem in error.errors():
            _say(console, f"{problem['loc'][0]}: {problem['msg']}")
        return 1
    except (DatasetError, ExtractorError, InspectionError, OSError) as error:
        _say(console, str(error))
        return 1
    return 0


def _report(arguments: argparse.Namespace, console: Console) -> None:
    measurements, cases = _measure_all(arguments, Path(), console)
    console.print(*map(rich_table, measurements))
    if arguments.markdown:
        _say(console, markdown_table(measurements))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(list(map(_as_json, measurements)), indent=1), encoding="utf-8")
        _say(console, f"Every score: {arguments.json}")
    if arguments.page is not None:
        write_page(measurements, cases, arguments.page)
        _say(console, f"Page: {arguments.page.resolve()}")


def _measure_all(
    arguments: argparse.Namespace, root: Path, console: Console
) -> tuple[list[Measurement], tuple[Case, ...]]:
    """Return one measurement per plan, and the cases of the best one."""
    data = _dataset(arguments, root)
    plans = _plans(arguments)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    n_images = sum(plan.shots + len(data.draw(plan.shots, 0, pooled=plan.pooled).test) for plan in plans)
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="accuracy-", ignore_cleanup_errors=True) as embeddings,
        Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress,
    ):
        task = progress.add_task("", total=arguments.seeds * n_images)
        for plan in plans:
            size, rate = plan.settings.input_size, plan.settings.coreset_rate
            prefix = f"{data.name}, {plan.shots} shots, {size} px, coreset {100 * rate:g} %"

            def tick(what: str, n: int, prefix: str = prefix) -> None:
                progress.update(task, advance=n, description=f"{prefix}, {what}")

            with_cases = arguments.page is not None
            found.append(measure(data, plan, with_cases=with_cases, tick=tick, embeddings=Path(embeddings)))
    measurements = [measurement for measurement, _ in found]
    return measurements, found[measurements.index(best_of(measurements))][1]


def _dataset(arguments: argparse.Namespace, root: Path) -> Dataset:
    if arguments.data is None:
        raise DatasetError("--data is missing: name a folder with train/good, test/good and test/<defect>.")
    return read_dataset(root / arguments.data)


def _plans(arguments: argparse.Namespace) -> list[Plan]:
    """Return what a command line asks for: every combination of what has several values."""
    is_own = arguments.extractor in OWN_EXTRACTORS
    if len(arguments.input_size) > 1 and not takes_input_size(arguments.extractor):
        raise ExtractorError(f"--extractor {arguments.extractor} takes no input_size: name one --input-size only.")
    plans = []
    for shots, input_size, rate, aligned in product(
        arguments.shots, arguments.input_size, arguments.coreset_rate or [None], arguments.aligned or [None]
    ):
        named: dict[str, Any] = {} if rate is None else {"coreset_rate": rate}
        settings = Settings(
            extractor=arguments.extractor if is_own else "filter-bank",
            weights=arguments.weights,
            input_size=input_size,
            resize=arguments.resize,
            score_percentile=arguments.score_percentile,
            **named,
        )
        plans.append(
            Plan(
                settings=settings,
                shots=shots,
                seeds=arguments.seeds,
                modes=tuple(dict.fromkeys(arguments.score_mode or MODES)),
                pooled=arguments.pooled,
                extractor=None if is_own else arguments.extractor,
                aligned=aligned,
                mm_per_px=arguments.mm_per_px,
            )
        )
    return plans


def _as_json(measurement: Measurement) -> dict[str, Any]:
    """Return everything that was measured, every score included."""
    recalls = {mode: measurement.recall_by_kind(mode) for mode in measurement.modes}
    return {
        **asdict(measurement),
        "recall_by_kind": {
            mode: {kind: asdict(spread) for kind, spread in by_kind.items()} for mode, by_kind in recalls.items()
        },
    }


def _update(document: Path, root: Path, console: Console) -> None:
    """Measure again what the blocks of a document name, and put each table in its place as soon as it is there."""
    blocks = dict.fromkeys(block["options"] for block in _BLOCK.finditer(_read(document)))
    arguments_by_block = {options: _parser().parse_args(shlex.split(options)) for options in blocks}
    for arguments in arguments_by_block.values():  # What cannot be measured is said now, not after half an hour.
        data = _dataset(arguments, root)
        for plan in _plans(arguments):
            data.draw(plan.shots, 0, pooled=plan.pooled)
    for options, arguments in arguments_by_block.items():
        measurements, _ = _measure_all(arguments, root, console)
        console.print(*map(rich_table, measurements))
        command = f"```sh\npython -m benchmarks.accuracy {options}\n```"
        table = f"<!-- accuracy: {options} -->\n{command}\n\n{markdown_table(measurements)}\n<!-- /accuracy -->"

        def renewed(block: re.Match[str], options: str = options, table: str = table) -> str:
            return table if block["options"] == options else block[0]

        # Read again: this takes minutes, and somebody may have worked on the words meanwhile.
        document.write_text(_BLOCK.sub(renewed, _read(document)), encoding="utf-8", newline="\n")


def _read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder with train/good, test/good, test/<defect> and, if known, ground_truth")
    add("--extractor", default="filter-bank", help="filter-bank, dinov2, or package.module:Class (%(default)s)")
    add("--weights", type=Path, help="weights of DINOv2; by default as the service finds them")
    add("--shots", type=int, nargs="+", default=[50], help="good images to learn from; several are compared (50)")
    add("--seeds", type=_positive, default=5, help="draws of the shots (%(default)s)")
    add("--pooled", action="store_true", help="draw from train/good and test/good together, test on what is left")
    add("--input-size", type=int, nargs="+", default=[384], help="network input, px; several are compared (384)")
    add("--resize", choices=("aspect", "square"), default="aspect", help="(%(default)s)")
    add("--coreset-rate", type=float, nargs="+", help="share of the embeddings that is kept; several are compared")
    add("--aligned", choices=get_args(Aligned), nargs="+", help="what the fit is asked; several are compared")
    add("--score-mode", choices=SCORE_MODES, nargs="+", help="statistics of the map that are the score; all by default")
    add("--score-percentile", type=float, default=99.0, help="(%(default)g)")
    add("--mm-per-px", type=float, default=0.2, help="scale of the images, for the area score (%(default)g)")
    add("--markdown", action="store_true", help="print the table as Markdown, too")
    add("--json", type=Path, metavar="OUT", help="write every score to this file")
    add("--page", type=Path, metavar="OUT.html", help="write a page with plots and the worst cases")
    add("--update", type=Path, metavar="FILE.md", help="measure again all tables of a document, in place")
    add("--root", type=Path, default=Path(), help="folder that the --data of a document is relative to")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
