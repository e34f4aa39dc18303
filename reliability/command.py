"""What the commands share: options, progress, a table on the screen, JSON, and blocks of ``docs/reliability.md``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from backend.demo.service_process import ServiceFailed
from benchmarks.machine import machine_facts, update_block
from reliability.outcomes import Outcome

_HEADINGS = ("claim", "figure", "holds")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--update``."""
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure and the facts of the machine")
    parser.add_argument("--update", type=Path, metavar="DOCUMENT", help="fill the marked blocks of a document")


@contextmanager
def steps(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar for the ``with`` block; the function that it yields advances it by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


Proof = Callable[[Path, Callable[[], None]], Outcome]
"""Proves something in a folder, and calls back after each of its steps."""


def run_command(
    name: str, document: str | None, plan_type: Any, run: Callable[..., Outcome], n_steps: Callable[[Any], int]
) -> NoReturn:
    """Run one proof as a command and exit with 0 when every claim holds.

    Args:
        name: Of the module.
        document: Its docstring, whose first line describes the command.
        plan_type: A dataclass; each field is an option, with the ``help`` of its metadata.
        run: Runs a plan in a folder, with a ``step`` to call.
        n_steps: How many steps a plan takes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m reliability.{name}", description=(document or "").split("\n")[0])
    for option in fields(plan_type):
        text = f"{option.metadata['help']} (%(default)s)"
        parser.add_argument(f"--{option.name}", type=type(option.default), default=option.default, help=text)
    add_output_options(parser)
    arguments = parser.parse_args()
    plan = plan_type(**{option.name: getattr(arguments, option.name) for option in fields(plan_type)})
    sys.exit(proved([(name, n_steps(plan), lambda folder, step: run(plan, folder, step=step))], arguments))


def proved(proofs: Sequence[tuple[str, int, Proof]], arguments: argparse.Namespace) -> int:
    """Run proofs (name, number of steps, proof) and publish what came of them; return 0 when every claim holds."""
    outcomes = []
    for name, total, prove in proofs:
        try:
            with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder, steps(name, total) as step:
                outcomes.append(prove(Path(folder), step))
        except ServiceFailed as error:
            print(f"{name}: {error}", file=sys.stderr)
    holds = publish(outcomes, arguments) == 0 and len(outcomes) == len(proofs)
    return 0 if holds else 1


def publish(outcomes: Sequence[Outcome], arguments: argparse.Namespace, *, console: Console | None = None) -> int:
    """Print outcomes, and write them where the options say; return 0 when every claim holds, else 1."""
    console = console or Console()
    facts = machine_facts()
    for outcome in outcomes:
        table = Table(*(Column(heading, overflow="fold") for heading in _HEADINGS), title=outcome.name)
        for claim in outcome.claims:
            holds = "yes" if claim.holds else "NO"
            table.add_row(claim.text, claim.figure, holds, style="" if claim.holds else "bold red")
        console.print(table)
        for finding in outcome.findings:
            console.print(f"- {finding}", markup=False, highlight=False)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": facts, "outcomes": [asdict(outcome) for outcome in outcomes]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if arguments.update is not None:
        for outcome in outcomes:
            update_block(arguments.update, outcome.name, block(outcome, facts))
    return 0 if all(outcome.holds for outcome in outcomes) else 1


def block(outcome: Outcome, facts: dict[str, Any]) -> str:
    """Return an outcome as the text between its two markers."""
    rows = [(claim.text, claim.figure, "yes" if claim.holds else "**NO**") for claim in outcome.claims]
    lines = ["| " + " | ".join(line) + " |" for line in (_HEADINGS, ("---", "---", "---"), *rows)]
    minutes = float(outcome.figures["elapsed_s"]) / 60
    load = f" Load average at the end: {facts['load_average']:.1f}." if facts["load_average"] is not None else ""
    return "\n".join(lines) + (
        f"\n\nMeasured {facts['date']} in {minutes:.1f} min on {facts['processor']}, {facts['cores']} cores, "
        f"{facts['system']}, Python {facts['python']}.{load}"
    )
