"""What ``roi-inspector verify``, ``backup`` and ``restore`` print."""

from __future__ import annotations

from pathlib import Path

from backend.errors import InspectionError
from backend.maintenance.backup import ArchiveError, back_up
from backend.maintenance.restoring import restore
from backend.maintenance.terminal import say, show
from backend.maintenance.verifying import verify_folder


def run_verify(models_dir: Path) -> int:
    """Print one line for each problem and a summary; return 0 when all is well, else 1."""
    if not models_dir.is_dir():
        return _refused(f"There is no folder {models_dir}.")
    n_files = 0

    def progress(done: int, total: int) -> None:
        nonlocal n_files
        n_files = total
        show(f"verifying: {done} of {total} files")

    try:
        problems = verify_folder(models_dir, progress=progress)
    except OSError as error:
        return _refused(f"The folder cannot be read: {error}")
    for problem in problems:
        say(str(problem))
    say(f"{n_files} files, {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}.")
    return 1 if problems else 0


def run_backup(
    models_dir: Path,
    out: Path,
    *,
    recipe_id: str | None = None,
    role_id: str | None = None,
    roi_id: str | None = None,
    with_versions: bool = True,
) -> int:
    """Back up ROIs and print which; return 0 when none had to be left out, else 1."""
    try:
        found = back_up(
            models_dir,
            out,
            recipe_id=recipe_id,
            role_id=role_id,
            roi_id=roi_id,
            with_versions=with_versions,
            left_out=lambda key, problem: say(f"left out an earlier version of {key}: {problem}"),
            progress=lambda done, total: show(f"backing up: {done} of {total} ROIs"),
        )
    except (ArchiveError, InspectionError, OSError) as error:
        return _refused(str(error))
    for key, problems in found.items():
        say("\n  ".join([f"left out {key}, which is damaged:" if problems else f"saved {key}", *map(str, problems)]))
    n_saved = sum(not problems for problems in found.values())
    say(f"{n_saved} ROIs in {out}, {out.stat().st_size / 1e6:.1f} MB.")
    return 0 if n_saved == len(found) else 1


def run_restore(archive: Path, models_dir: Path, *, replace: bool = False) -> int:
    """Restore an archive and print what came back; return 0, or 1 when it was refused."""
    try:
        restored = restore(archive, models_dir, replace=replace)
    except (ArchiveError, InspectionError, OSError) as error:
        return _refused(str(error))
    for key, problems in restored.items():
        say("\n  ".join([f"restored {key}", *map(str, problems)]))
    return 0


def _refused(why: str) -> int:
    say(why)
    return 1
