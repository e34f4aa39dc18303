"""Folder names, and what each file of a models folder is, told by its place alone: what ``backend/storage.py`` wrote.

A name that this module does not know was not written by the service. Verification reports it, an archive that holds
one is refused.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from backend.artifacts.files import TEMP_PREFIX
from backend.artifacts.image_store import Label
from backend.artifacts.model_key import (
    DEFAULT_RECIPE,
    RECIPES_FOLDER,
    ModelKey,
    checked_recipe,
    folder_name,
    id_of_folder,
)
from backend.errors import InvalidId, ReservedRecipe
from backend.imaging.image_codec import SUFFIX_BY_FORMAT

Kind = Literal[
    "memory", "index", "calibration", "image", "facts", "embeddings", "heatmap", "lock", "job", "job_mark", "engine",
    "audit", "note", "leftover",
]  # fmt: skip

_MODEL_FILES: dict[str, Kind] = {"memory.npz": "memory", "index.faiss": "index", "calib.json": "calibration"}
_AUDIT_FILES = frozenset({"audit.sqlite3", "audit.sqlite3-wal", "audit.sqlite3-shm", "audit.sqlite3-journal"})
_SET_ASIDE = re.compile(r"(.+)\.corrupt-(\d{8}T\d{6}Z)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHORT_DIGEST = re.compile(r"[0-9a-f]{16}")
_JOB = re.compile(r"[0-9a-f]{32}\.(json|cancel|alive)")
_ENGINE = re.compile(r"openvino-[0-9a-f]{16}/(model\.xml|model\.bin|SHA256SUMS)")


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a file is.

    Attributes:
        kind: What it holds.
        key: The model, or the ROI where the file belongs to all of its models; None for what belongs to no ROI.
        label: Of an image.
        digest: Of the image that the file is, describes or was made of.
        set_aside: When it was found damaged, as ``20261122T185500Z``; empty for a file in use.
    """

    kind: Kind
    key: ModelKey | None = None
    label: Label | None = None
    digest: str = ""
    set_aside: str = ""


def child_folder(parent: Path, an_id: str) -> Path:
    """Return the folder of an id below a parent.

    The plain name, unless it is taken by an id that differs from this one only by case: a case-insensitive file system
    would mix the two up, so the second gets the fully escaped name.
    """
    escaped = folder_name(an_id, escape_all=True)
    try:
        present = {unicodedata.normalize("NFC", entry.name) for entry in parent.iterdir()}
    except FileNotFoundError:
        present = set()
    if escaped in present:
        return parent / escaped
    plain = folder_name(an_id)
    if plain in present or plain.casefold() not in {entry.casefold() for entry in present}:
        return parent / plain
    return parent / escaped


def files_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every file below a folder with its status, folder by folder, names in order; links are not followed.

    What disappears meanwhile is passed over.

    Raises:
        OSError: If a folder cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path))
            continue
        try:
            yield Path(entry.path), entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue


def leftover_of(path: PurePosixPath) -> PurePosixPath | None:
    """Return the temporary file that a path is, or the temporary folder that it lies in; None for anything else."""
    for depth, part in enumerate(path.parts, start=1):
        if part.startswith(TEMP_PREFIX):
            return PurePosixPath(*path.parts[:depth])
    return None


def place_of(path: PurePosixPath) -> Place | None:
    """Return what a file is, by its path below the models folder; None where no file of ours lies."""
    parts = path.parts
    if leftover_of(path) is not None:
        return Place(kind="leftover")
    if path.as_posix() == "README.md":
        return Place(kind="note")
    if path.as_posix() in _AUDIT_FILES:
        return Place(kind="audit")
    if parts[0] == ".jobs":
        return _job_place(parts[1:])
    if parts[0] == ".engines":
        return Place(kind="engine") if _ENGINE.fullmatch("/".join(parts[1:])) else None
    recipe_id = DEFAULT_RECIPE
    if parts[0] == RECIPES_FOLDER:
        if len(parts) < 2 or not is_recipe_folder(parts[1]):
            return None
        recipe_id, parts = id_of_folder(parts[1]), parts[2:]
    if len(parts) < 3:
        return None
    role_id, roi_id = id_leading_to(parts[0]), id_leading_to(parts[1])
    if role_id is None or roi_id is None:
        return None
    key = ModelKey(recipe_id=recipe_id, role_id=role_id, roi_id=roi_id)
    return _place_in_roi(key, parts[2:])


def id_leading_to(name: str) -> str | None:
    """Return the id that leads to a folder of this name, or None where none does, as to an operator's copy."""
    try:
        an_id = id_of_folder(name)
        ModelKey(role_id=an_id, roi_id=an_id)
    except (InvalidId, UnicodeDecodeError):
        return None
    name = unicodedata.normalize("NFC", name)
    return an_id if name in (folder_name(an_id), folder_name(an_id, escape_all=True)) else None


def is_recipe_folder(name: str) -> bool:
    """Return whether a folder can be a recipe's; an operator's backup beside them is none."""
    try:
        return folder_name(checked_recipe(id_of_folder(name))) == name != DEFAULT_RECIPE
    except (ReservedRecipe, UnicodeDecodeError):
        return False


def _job_place(parts: tuple[str, ...]) -> Place | None:
    if parts == (".lock",):
        return Place(kind="lock")
    if len(parts) != 1 or not _JOB.fullmatch(parts[0]):
        return None
    return Place(kind="job" if parts[0].endswith(".json") else "job_mark")


def _place_in_roi(key: ModelKey, parts: tuple[str, ...]) -> Place | None:
    if parts == (".lock",):
        return Place(kind="lock", key=key)
    name, set_aside = parts[-1], ""
    if match := _SET_ASIDE.fullmatch(name):
        name, set_aside = match[1], match[2]
    place = _live_place(key, (*parts[:-1], name))
    return None if place is None else replace(place, set_aside=set_aside)


def _live_place(key: ModelKey, parts: tuple[str, ...]) -> Place | None:
    match parts:
        case (name,) if name in _MODEL_FILES:
            return Place(kind=_MODEL_FILES[name], key=key)
        case ("images", ("ok" | "ng") as label, name) if _DIGEST.fullmatch(stem := name.partition(".")[0]):
            suffix = name[len(stem) :]
            kind: Kind | None = "facts" if suffix == ".json" else "image" if suffix in _IMAGE_SUFFIXES else None
            return None if kind is None else Place(kind=kind, key=key, label=label, digest=stem)
        case ("embeddings", made_by, name) if _SHORT_DIGEST.fullmatch(made_by) and name.endswith(".npy"):
            digest = name.removesuffix(".npy")
            return Place(kind="embeddings", key=key, digest=digest) if _DIGEST.fullmatch(digest) else None
        case ("heatmaps", name) if name.endswith(".png"):
            digest = name.removesuffix(".png")
            return Place(kind="heatmap", key=key, digest=digest) if _DIGEST.fullmatch(digest) else None
        case ("keys", folder, *inner) if inner and (inner[0] in _MODEL_FILES or inner[0] == "heatmaps"):
            model_key = id_leading_to(folder)
            if model_key is None or model_key == key.roi_id:
                return None
            return _live_place(replace(key, model_key=model_key), tuple(inner))
    return None


_IMAGE_SUFFIXES = frozenset(SUFFIX_BY_FORMAT.values())
