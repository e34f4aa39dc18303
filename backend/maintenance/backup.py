"""ROIs as one archive file, to keep or to carry to another machine.

A zip file: ``manifest.json`` names the ROIs and gives the size and SHA-256 of every other member; those are
``rois/<number>/…``, laid out as a ROI's folder is. Names are ASCII whatever the ids are, so that every system unpacks
them. What can be made again (the index, heat maps) is left out, and so is what was set aside as damaged.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from backend.artifacts.files import replace, scratch_folder, sync_folder, sync_tree, writing
from backend.artifacts.layout import ArtifactPath, Entry, Kind, orphans, walk
from backend.artifacts.model_key import ModelKey, folder_name
from backend.maintenance.verifying import Fault, Problem, verify_entries
from backend.maintenance.verifying_versions import without_versions
from backend.memory_bank.coreset import Progress
from backend.services.recipes import Recipes
from backend.storage import ArtefactStore

ARCHIVE_FORMAT: Final = 1
MANIFEST: Final = "manifest.json"

_OF_VERSIONS: Final[frozenset[Kind]] = frozenset({"version", "kept_memory"})
_CARRIED: Final[frozenset[Kind]] = frozenset({"memory", "calibration", "image", "facts", "embeddings", *_OF_VERSIONS})
_HARMLESS: Final[frozenset[Fault]] = frozenset({"leftover", "unknown", "outdated"})
"""The first two are not carried. An outdated memory is, as it is, with the images that it is learned from again."""


class ArchiveError(ValueError):
    """An archive that cannot be made, or not be restored; says what to do."""


def back_up(
    models_dir: Path,
    out: Path,
    *,
    recipe_id: str | None = None,
    role_id: str | None = None,
    roi_id: str | None = None,
    with_versions: bool = True,
    left_out: Callable[[ModelKey, Problem], None] | None = None,
    progress: Progress | None = None,
) -> dict[ModelKey, list[Problem]]:
    """Write ROIs to an archive: those of a recipe, a role or an id where it is named, else all.

    Each is read under its lock, so that it is of one moment. One in which something is damaged is left out: an archive
    holds what can be restored. The archive ``out`` is there completely, or not at all. A damaged version that is not in
    force is left out alone.

    Args:
        models_dir: The models folder.
        out: The archive.
        recipe_id, role_id, roi_id: Which ROIs.
        with_versions: Also take the versions that were in force before.
        left_out: Called with what is damaged of the earlier versions of a ROI.
        progress: Called with (ROIs done, ROIs in all).

    Returns:
        For each of the ROIs why it was left out; an empty list for those that are in the archive.

    Raises:
        ArchiveError: If ``out`` exists, or there is no such ROI, or none without damage.
        StorageFull, StorageFailed: If it cannot be written.
        Unavailable: If a ROI is locked for long.
    """
    if out.exists():
        raise ArchiveError(f"{out} exists. Choose another name: a backup replaces none.")
    store = ArtefactStore(models_dir)
    contents = Recipes(store).contents()
    wanted = [
        key
        for key in dict.fromkeys(model.roi for models in contents.values() for model in models)
        if recipe_id in (None, key.recipe_id) and role_id in (None, key.role_id) and roi_id in (None, key.roi_id)
    ]
    if not wanted:
        raise ArchiveError(f"There is no such ROI in {models_dir}.")
    problems: dict[ModelKey, list[Problem]] = {}
    rois: list[dict[str, str]] = []
    files: dict[str, dict[str, Any]] = {}
    folder = out.absolute().parent
    with writing(), scratch_folder(folder) as scratch:
        made = scratch / out.name
        with zipfile.ZipFile(made, "w") as archive:
            for n_done, key in enumerate(wanted):
                if progress is not None:
                    progress(n_done, len(wanted))
                with store.lock(key):
                    entries = [*walk(models_dir, store.roi_folder(key))]
                    found = verify_entries(entries)
                    kinds = {entry.name: entry.artifact.kind for entry in entries}
                    of_versions = [each for each in found if kinds[each.path] in _OF_VERSIONS]
                    problems[key] = [each for each in found if each.fault not in _HARMLESS and each not in of_versions]
                    if not problems[key]:
                        left = {each.path for each in of_versions}
                        if not with_versions:
                            left = {name for name, kind in kinds.items() if kind in _OF_VERSIONS}
                        entries = without_versions(entries, left)
                        for each in of_versions if with_versions else ():
                            if each.fault not in _HARMLESS and left_out is not None:
                                left_out(key, each)
                        files |= _add(archive, f"rois/{len(rois)}", entries, store.roi_folder(key))
                        rois.append({"recipe_id": key.recipe_id, "role_id": key.role_id, "roi_id": key.roi_id})
            manifest = {"format": ARCHIVE_FORMAT, "rois": rois, "files": files}
            archive.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1), zipfile.ZIP_DEFLATED)
        if not rois:
            raise ArchiveError("Every one of the ROIs is damaged; there is nothing to back up. Run verify.")
        sync_tree(scratch)
        replace(made, out)
        sync_folder(folder)
    return problems


def is_carried(artifact: ArtifactPath) -> bool:
    """Return whether an archive holds a file of this kind."""
    return artifact.kind in _CARRIED and not artifact.set_aside


def member_name(inner: str, artifact: ArtifactPath) -> str:
    """Return the name that an archive has below a ROI's for a file, by its path in the ROI's folder."""
    if artifact.key is None or not inner.startswith("keys/"):
        return inner
    return f"keys/{folder_name(artifact.key.model_key, escape_all=True)}/{in_model_folder(inner)}"


def in_model_folder(inner: str) -> str:
    """Return the path in a model's folder of what lies in its ROI's."""
    return inner.split("/", 2)[2] if inner.startswith("keys/") else inner


def _add(
    archive: zipfile.ZipFile, prefix: str, entries: Sequence[Entry], roi_folder: Path
) -> dict[str, dict[str, Any]]:
    """Add the files of a ROI, and return their lines of the manifest."""
    lines = {}
    left_over = {entry.path for entry in orphans(entries)}
    for path, _, artifact, _ in entries:
        if not is_carried(artifact) or path in left_over:
            continue
        name = f"{prefix}/{member_name(path.relative_to(roi_folder).as_posix(), artifact)}"
        data = path.read_bytes()
        # Images and numbers do not get smaller.
        archive.writestr(name, data, zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED)
        lines[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return lines
