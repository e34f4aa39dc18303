"""What ``roi-inspector verify``, ``backup`` and ``restore`` print."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from backend.errors import InspectionError
from backend.maintenance.backup import ArchiveError, back_up
from backend.maintenance.restoring import restore
from backend.maintenance.verifying import verify_folder


def run_verify(models_dir: Path) -> int:
    """Print one line for each problem and a summary; return 0 when all is well, else 1."""
    if not models_dir.is_dir():
        _say(f"There is no folder {models_dir}.")
        return 1
    n_files = 0
    with _progress("verifying") as bar:
        task = bar.task_ids[0]

        def progress(done: int, total: int) -> None:
            nonlocal n_files
            n_files = total
            bar.update(task, completed=done, total=total)

        try:
            problems = verify_folder(models_dir, progress=progress)
        except OSError as error:
            _say(f"The folder cannot be read: {error}")
            return 1
    for problem in problems:
        _say(str(problem))
    _say(f"{n_files} files, {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}.")
    return 1 if problems else 0


def run_backup(
    models_dir: Path, out: Path, *, recipe_id: str | None = None, role_id: str | None = None, roi_id: str | None = None
) -> int:
    """Back up ROIs and print which; return 0 when none had to be left out, else 1."""
    try:
        with _progress("reading") as bar:
            report = back_up(
                models_dir,
                out,
                recipe_id=recipe_id,
                role_id=role_id,
                roi_id=roi_id,
                told=lambda key: bar.update(bar.task_ids[0], description=str(key)),
            )
    except (ArchiveError, InspectionError, OSError) as error:
        _say(str(error))
        return 1
    for key in report.saved:
        _say(f"saved {key}")
    for key, problems in report.problems.items():
        _say(f"left out {key}, which is damaged:")
        for problem in problems:
            _say(f"  {problem}")
    _say(f"{len(report.saved)} ROIs in {out}, {out.stat().st_size / 1e6:.1f} MB.")
    return 1 if report.problems else 0


def run_restore(archive: Path, models_dir: Path, *, replace: bool = False) -> int:
    """Restore an archive and print what came back; return 0, or 1 when it was refused."""
    try:
        with _progress("restoring"):
            keys = restore(archive, models_dir, replace=replace)
    except (ArchiveError, InspectionError, OSError) as error:
        _say(str(error))
        return 1
    for key in keys:
        _say(f"restored {key}")
    return 0


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        bar.add_task(what, total=None)
        yield bar


def _say(line: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # A code page without a letter of a name must not end it.
    print(line)
