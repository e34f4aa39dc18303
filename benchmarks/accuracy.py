"""How well the service tells good parts from defective ones, on any folder in the layout of the public benchmarks.

python -m benchmarks.accuracy --data DIR [--extractor dinov2 --weights FILE] [--page page.html]
python -m benchmarks.accuracy --update docs/accuracy.md --root DIR
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from backend.calib import SCORE_MODES
from backend.errors import InspectionError
from backend.settings import Settings
from benchmarks.accuracy_page import Case, markdown_table, rich_table, write_page
from benchmarks.accuracy_runs import MODES, Plan, measure
from benchmarks.datasets import DatasetError, read_dataset
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
    except (DatasetError, InspectionError, OSError) as error:
        _say(console, str(error))
        return 1
    return 0


def _report(arguments: argparse.Namespace, console: Console) -> None:
    measurements, cases = _measure_all(arguments, Path(), console)
    console.print(*map(rich_table, measurements))
    if arguments.markdown:
        _say(console, markdown_table(measurements))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(found) for found in measurements], indent=1), encoding="utf-8")
        _say(console, f"Every score: {arguments.json}")
    if arguments.page is not None:
        write_page(measurements, cases, arguments.page)
        _say(console, f"Page: {arguments.page.resolve()}")


def _measure_all(
    arguments: argparse.Namespace, root: Path, console: Console
) -> tuple[list[Measurement], tuple[Case, ...]]:
    """Return one measurement per input size, and the cases of the one with the best image AUROC."""
    if arguments.data is None:
        raise DatasetError("--data is missing: name a folder with train/good, test/good and test/<defect>.")
    data = read_dataset(root / arguments.data)
    plans = [
        Plan(
            settings=Settings(
                extractor=arguments.extractor,
                weights=arguments.weights,
                input_size=input_size,
                resize=arguments.resize,
                score_percentile=arguments.score_percentile,
            ),
            shots=arguments.shots,
            seeds=arguments.seeds,
            modes=MODES if arguments.score_mode is None else (arguments.score_mode,),
            pooled=arguments.pooled,
        )
        for input_size in arguments.input_size
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    an_image_each = arguments.shots + len(data.draw(arguments.shots, 0, pooled=arguments.pooled).test)
    found = []
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plans) * arguments.seeds * an_image_each)
        for plan in plans:
            prefix = f"{data.name}, {plan.settings.input_size} px"

            def tick(what: str, n: int, prefix: str = prefix) -> None:
                progress.update(task, advance=n, description=f"{prefix}, {what}")

            found.append(measure(data, plan, with_cases=arguments.page is not None, tick=tick))
    measurements = [measurement for measurement, _ in found]
    return measurements, found[measurements.index(best_of(measurements))][1]


def _update(document: Path, root: Path, console: Console) -> None:
    """Measure again what the blocks of a document name, and put each table in its place as soon as it is there."""
    for options in dict.fromkeys(block["options"] for block in _BLOCK.finditer(_read(document))):
        measurements, _ = _measure_all(_parser().parse_args(shlex.split(options)), root, console)
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
    add("--extractor", choices=("filter-bank", "dinov2"), default="filter-bank", help="(%(default)s)")
    add("--weights", type=Path, help="weights of DINOv2; by default as the service finds them")
    add("--shots", type=int, default=50, help="good images to learn from (%(default)s)")
    add("--seeds", type=_positive, default=5, help="draws of the shots (%(default)s)")
    add("--pooled", action="store_true", help="draw from train/good and test/good together, test on what is left")
    add("--input-size", type=int, nargs="+", default=[384], help="network input, px; several are compared (384)")
    add("--resize", choices=("aspect", "square"), default="aspect", help="(%(default)s)")
    add("--score-mode", choices=SCORE_MODES, help="statistic of the map that is the score; all by default")
    add("--score-percentile", type=float, default=99.0, help="(%(default)g)")
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
