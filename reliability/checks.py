"""What a models folder must be when nobody works on it: whole by ``verify``, no lock held, nothing half-written."""

from __future__ import annotations

import time
from pathlib import Path

from filelock import FileLock, Timeout

from backend.maintenance.verifying import verify_folder
from reliability.moments import temporary_files


def folder_problems(models_dir: Path) -> list[str]:
    """Return what ``roi-inspector verify`` says of a folder, one sentence per problem."""
    return [str(problem) for problem in verify_folder(models_dir)]


def problems_after_a_crash(models_dir: Path, *, patience_s: float = 10.0) -> list[str]:
    """Return what ``verify`` says of a folder once the service that was started on it has swept it, behind its work."""
    deadline = time.monotonic() + patience_s
    while True:
        found = verify_folder(models_dir)
        if not all(problem.fault == "leftover" for problem in found) or not found or time.monotonic() > deadline:
            return [str(problem) for problem in found]
        time.sleep(0.1)


def leftovers(models_dir: Path) -> list[str]:
    """Return the locks of ROIs that are held, and the temporary files, that a folder holds; all must be gone."""
    found = [f"left behind: {path}" for path in temporary_files(models_dir)]
    for path in models_dir.rglob(".lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            found.append(f"still locked: {path}")
    return found
