"""ROIs as one archive file, to keep or to carry to another machine.

A zip file: ``manifest.json`` names the ROIs and gives the size and SHA-256 of every other member; those are
``rois/<number>/…``, laid out as a ROI's folder is. Names are ASCII whatever the ids are, so that every system unpacks
them. What can be made again (the index, heat maps) is left out, and so is what was set aside as damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from backend.artifacts.files import make_folder, replace, staged, sync_folder, writing
from backend.artifacts.layout import Kind, Place, files_below, place_of
from backend.artifacts.model_key import ModelKey, folder_name
from backend.maintenance.verifying import Problem, verify_roi
from backend.services.recipes import Recipes
from backend.storage import ArtefactStore

ARCHIVE_FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
CARRIED: Final[frozenset[Kind]] = frozenset({"memory", "calibration", "image", "facts", "embeddings"})

_DULL: Final = frozenset({"leftover", "unknown"})  # not carried, and no harm to what is


class ArchiveError(ValueError):
    """An archive that cannot be made, or not be restored; says what to do."""


@dataclass(frozen=True, kw_only=True)
class BackupReport:
    """What came of a backup.

    Attributes:
        saved: The ROIs in the archive.
        problems: Why ROIs are not in it, by ROI.
    """

    saved: list[ModelKey]
    problems: dict[ModelKey, list[Problem]]


def back_up(
    models_dir: Path,
    out: Path,
    *,
    recipe_id: str | None = None,
    role_id: str | None = None,
    roi_id: str | None = None,
    told: Callable[[ModelKey], None] | None = None,
) -> BackupReport:
    """Write ROIs to an archive and return which; each is read under its lock, so that it is of one moment.

    A ROI in which something is damaged is left out: an archive holds what can be restored.

    Args:
        models_dir: The models folder.
        out: The archive; it is there completely, or not at all.
        recipe_id: Only of this recipe.
        role_id: Only of this role.
        roi_id: Only ROIs of this id.
        told: Told of each ROI before it is read.

    Raises:
        ArchiveError: If ``out`` exists, or there is no such ROI.
        StorageFull, StorageFailed: If it cannot be written.
        Unavailable: If a ROI is locked for long.
    """
    if out.exists():
        raise ArchiveError(f"{out} exists. Choose another name: a backup replaces none.")
    store = ArtefactStore(models_dir)
    wanted = [
        key
        for key in rois(store)
        if recipe_id in (None, key.recipe_id) and role_id in (None, key.role_id) and roi_id in (None, key.roi_id)
    ]
    if not wanted:
        raise ArchiveError(f"There is no such ROI in {models_dir}.")
    report = BackupReport(saved=[], problems={})
    files: dict[str, dict[str, Any]] = {}
    with _archive(out) as archive:
        for key in wanted:
            if told is not None:
                told(key)
            with store.lock(key):
                problems = [problem for problem in verify_roi(models_dir, key) if problem.fault not in _DULL]
                if problems:
                    report.problems[key] = problems
                    continue
                for path, place in carried_files(store, key):
                    name = f"rois/{len(report.saved)}/{_member_name(path, place, store.roi_folder(key))}"
                    files[name] = _add(archive, name, path)
            report.saved.append(key)
        if not report.saved:
            raise ArchiveError("Every one of the ROIs is damaged; there is nothing to back up. Run verify.")
        manifest = {"format": ARCHIVE_FORMAT, "rois": [_identity(key) for key in report.saved], "files": files}
        archive.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1), zipfile.ZIP_DEFLATED)
    return report


def rois(store: ArtefactStore) -> list[ModelKey]:
    """Return the ROIs below a models folder that hold a memory or images, whatever their model keys."""
    found = {
        ModelKey(recipe_id=key.recipe_id, role_id=key.role_id, roi_id=key.roi_id): None
        for keys in Recipes(store.models_dir, store).contents().values()
        for key in keys
    }
    return list(found)


def carried_files(store: ArtefactStore, roi: ModelKey) -> Iterator[tuple[Path, Place]]:
    """Yield the files of a ROI that an archive carries."""
    for path, _ in files_below(store.roi_folder(roi)):
        place = place_of(PurePosixPath(path.relative_to(store.models_dir).as_posix()))
        if place is not None and place.kind in CARRIED and not place.set_aside:
            yield path, place


def _member_name(path: Path, place: Place, roi_folder: Path) -> str:
    inner = path.relative_to(roi_folder).parts
    if inner[0] == "keys" and place.key is not None:
        inner = ("keys", folder_name(place.key.model_key, escape_all=True), *inner[2:])
    return "/".join(inner)


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Any]:
    """Add a file and return its line in the manifest."""
    data = path.read_bytes()
    # Images and numbers do not get smaller.
    archive.writestr(name, data, zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _identity(key: ModelKey) -> dict[str, str]:
    return {"recipe_id": key.recipe_id, "role_id": key.role_id, "roi_id": key.roi_id}


@contextmanager
def _archive(out: Path) -> Iterator[zipfile.ZipFile]:
    """Yield an archive that takes its name when the block ends well."""
    make_folder(out.absolute().parent)
    with writing(), staged(out.absolute(), b"") as temp:
        with zipfile.ZipFile(temp, "w") as archive:
            yield archive
        descriptor = os.open(temp, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        replace(temp, out)
        sync_folder(out.absolute().parent)
