"""What each file of a models folder is, by its path alone, and the one walk over all of them.

A name that this module does not know was not written by the service: it is reported, never deleted, and an archive that
holds one is refused. A folder that cannot be ours is not entered, and neither is one that may not be read.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from backend.artifacts.files import TEMP_PREFIX
from backend.artifacts.foreign import is_of_system, pass_over
from backend.artifacts.model_key import (
    DEFAULT_RECIPE,
    RECIPES_FOLDER,
    ModelKey,
    checked_recipe,
    folder_name,
    id_of_folder,
)
from backend.artifacts.stored_image import Label
from backend.errors import InvalidId, ReservedRecipe
from backend.imaging.image_codec import SUFFIX_BY_FORMAT

Kind = Literal[
    "memory", "index", "calibration", "image", "facts", "embeddings", "heatmap", "lock", "job", "job_mark", "engine",
    "audit", "history", "note", "marker", "version", "kept_memory", "temporary", "foreign", "unreadable", "unknown",
]  # fmt: skip

AUDIT_IMAGES = ".audit-images"
"""The folder of the images beside the audit; no id leads to it."""

MARKER = ".roi-inspector"
"""An empty file that says that a folder is a models folder."""

CORRUPT_MARK = ".corrupt-"
"""Between the name of a file that was set aside as damaged and the time of that."""

_DIGEST = r"(?P<digest>[0-9a-f]{64})"
_SUFFIX = "|".join(re.escape(suffix) for suffix in SUFFIX_BY_FORMAT.values())
_SET_ASIDE = re.compile(rf"(.+){re.escape(CORRUPT_MARK)}(\d{{8}}T\d{{6}}Z)")
_OF_ROI = re.compile(
    r"(?:recipes/(?P<recipe>[^/]+)/)?(?P<role>[^/]+)/(?P<roi>[^/]+)/(?:keys/(?P<model>[^/]+)/)?(?P<name>.+)"
)
_OF_MODEL: dict[Kind, str] = {
    "memory": r"memory\.npz",
    "index": r"index\.faiss",
    "calibration": r"calib\.json",
    "heatmap": rf"heatmaps/{_DIGEST}\.png",
    "version": r"versions/(?P<digest>(?:next|[1-9]\d{0,8})-[0-9a-f]{16})\.json",
    "kept_memory": r"versions/(?P<digest>[0-9a-f]{16})\.npz",
}
_PATTERNS_IN_ROI: dict[Kind, re.Pattern[str]] = {
    kind: re.compile(pattern)
    for kind, pattern in {
        **_OF_MODEL,
        "image": rf"images/(?P<label>ok|ng)/{_DIGEST}(?:{_SUFFIX})",
        "facts": rf"images/(?P<label>ok|ng)/{_DIGEST}\.json",
        "embeddings": rf"embeddings/[0-9a-f]{{16}}/{_DIGEST}\.npy",
        "lock": r"\.lock",
    }.items()
}
OWN_FOLDERS = (".jobs", ".engines", AUDIT_IMAGES)
_PATTERNS_ELSEWHERE: dict[Kind, re.Pattern[str]] = {
    "lock": re.compile(r"\.jobs/\.lock|\.audit\.sqlite3\.lock"),
    "marker": re.compile(re.escape(MARKER)),
    "note": re.compile(r"README\.md"),
    "audit": re.compile(
        rf"audit\.sqlite3(-wal|-shm|-journal)?|{re.escape(AUDIT_IMAGES)}/[0-9a-f]{{16}}/[0-9]{{1,19}}-[0-9a-f]{{16}}\.zip"
    ),
    "history": re.compile(rf"history\.sqlite3(-wal|-shm|-journal|{re.escape(CORRUPT_MARK)}\d{{8}}T\d{{6}}Z)?"),
    "job": re.compile(r"\.jobs/(inspect-)?[0-9a-f]{32}\.json"),
    "job_mark": re.compile(r"\.jobs/[0-9a-f]{32}\.(cancel|alive)"),
    "engine": re.compile(r"\.engines/openvino-[0-9a-f]{16}/(model\.xml|model\.bin|SHA256SUMS)"),
}


@dataclass(frozen=True, kw_only=True)
class ArtifactPath:
    """What a file is.

    Attributes:
        kind: What it holds.
        key: The model, or the ROI where the file belongs to all of its models; None for what belongs to no ROI.
        label: Of an image.
        digest: Of the image that the file is, describes or was made of; of a version's files what tells them apart.
        set_aside: When it was found damaged, as ``20261122T185500Z``; empty for a file in use.
    """

    kind: Kind
    key: ModelKey | None = None
    label: Label | None = None
    digest: str = ""
    set_aside: str = ""

    @property
    def in_use(self) -> ArtifactPath:
        """The same, as it was before it was set aside."""
        return replace(self, set_aside="")


class Entry(NamedTuple):
    """A file of a models folder, or as a whole a folder that is temporary or not entered.

    Its name is the path below the models folder, with forward slashes.
    """

    path: Path
    name: str
    artifact: ArtifactPath
    n_bytes: int


def walk(models_dir: Path, below: Path | None = None) -> Iterator[Entry]:
    """Yield what lies below a models folder, folder by folder, names in order; links are not followed.

    What disappears meanwhile is passed over. Folders that cannot be ours, and those below the models folder that may
    not be read, are not entered: they count for nothing, and are named once in the log.

    Args:
        models_dir: The models folder.
        below: A folder in it, to walk over that alone.

    Raises:
        OSError: If a folder of ours cannot be read although it may be, or the models folder itself.
    """
    folder = models_dir if below is None else below
    prefix = "" if below is None else f"{below.relative_to(models_dir).as_posix()}/"
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except PermissionError:
        if below is None:
            raise
        yield _passed_over(below, prefix.rstrip("/"), "unreadable")
        return
    for each in found:
        path, name = Path(each.path), prefix + each.name
        try:
            is_folder = each.is_dir(follow_symlinks=False)
            if is_of_system(each.name):
                yield _passed_over(path, name, "foreign")
            elif not is_folder:
                yield Entry(path, name, classify_path(name), each.stat(follow_symlinks=False).st_size)
            elif each.name.startswith(TEMP_PREFIX):
                yield Entry(path, name, classify_path(name), _bytes_below(path))
            elif not may_hold_ours(name):
                yield _passed_over(path, name, "unknown")
            else:
                yield from walk(models_dir, path)
        except FileNotFoundError:
            continue
        except PermissionError:
            yield _passed_over(path, name, "unreadable")


def _passed_over(path: Path, name: str, kind: Kind) -> Entry:
    pass_over(path, "it may not be read" if kind == "unreadable" else "it is not of this service")
    return Entry(path, name, ArtifactPath(kind=kind), 0)


def _bytes_below(folder: Path) -> int:
    n_bytes = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone, or of an account that we may not look at
                n_bytes += Path(root, name).lstat().st_size
    return n_bytes


def may_hold_ours(name: str) -> bool:
    """Return whether a folder can hold files of ours, by its path below the models folder with forward slashes."""
    first, *others = name.split("/")
    if first in OWN_FOLDERS:
        return True
    if first != RECIPES_FOLDER:
        return all(map(_is_id_folder, [first, *others[:1]]))
    return not others or (_is_recipe_folder(others[0]) and all(map(_is_id_folder, others[1:3])))


def classify_path(name: str) -> ArtifactPath:
    """Return what a file is, by its path below the models folder with forward slashes."""
    if name.rpartition("/")[2].startswith(TEMP_PREFIX):
        return ArtifactPath(kind="temporary")
    aside = _SET_ASIDE.fullmatch(name) if CORRUPT_MARK in name else None
    found = _OF_ROI.fullmatch(name if aside is None else aside[1])
    key = None if found is None else _key(found["recipe"], found["role"], found["roi"], found["model"])
    if found is None or key is None:
        kinds = (kind for kind, pattern in _PATTERNS_ELSEWHERE.items() if pattern.fullmatch(name))
        return ArtifactPath(kind=next(kinds, "unknown"))
    for kind, pattern in _PATTERNS_IN_ROI.items():
        if (match := pattern.fullmatch(found["name"])) and (kind in _OF_MODEL or not found["model"]):
            groups: dict[str, Any] = match.groupdict()
            return ArtifactPath(
                kind=kind,
                key=key,
                label=groups.get("label"),
                digest=groups.get("digest", ""),
                set_aside="" if aside is None else aside[2],
            )
    return ArtifactPath(kind="unknown")


def unreplaced(artifacts: Iterable[ArtifactPath]) -> set[ArtifactPath]:
    """Return what was set aside as damaged and has no successor, as it was when it was in use."""
    found = [*artifacts]
    return {each.in_use for each in found if each.set_aside} - {each for each in found if not each.set_aside}


def orphans(entries: Iterable[Entry]) -> list[Entry]:
    """Return image files without facts and embeddings without an image, of the entries of one ROI.

    A crash leaves the first between the two files of an upload, and the second in the middle of a deletion.
    """
    found = [*entries]
    images = {(each.artifact.label, each.artifact.digest) for each in found if each.artifact.kind == "facts"}
    known = {("image", *image) for image in images} | {("embeddings", None, digest) for _, digest in images}
    return [
        entry
        for entry in found
        if entry.artifact.kind in ("image", "embeddings") and not entry.artifact.set_aside
        if (entry.artifact.kind, entry.artifact.label, entry.artifact.digest) not in known
    ]


@lru_cache(maxsize=4096)
def _is_id_folder(name: str) -> bool:
    """Return whether an id leads to a folder of this name."""
    return _key(None, name, name, None) is not None


def _is_recipe_folder(name: str) -> bool:
    try:
        return name != DEFAULT_RECIPE and checked_recipe(name) == name
    except ReservedRecipe:
        return False


@lru_cache(maxsize=4096)  # A walk asks for the same ROI at each of its files, and checking ids is slow.
def _key(recipe: str | None, role: str, roi: str, model: str | None) -> ModelKey | None:
    """Return the model that folders of these names belong to; None for names that no id leads to, as of a copy."""
    try:
        key = ModelKey(
            recipe_id=DEFAULT_RECIPE if recipe is None else id_of_folder(recipe),
            role_id=id_of_folder(role),
            roi_id=id_of_folder(roi),
            model_key="" if model is None else id_of_folder(model),
        )
    except (InvalidId, ReservedRecipe, UnicodeDecodeError):
        return None
    pairs = [(role, key.role_id), (roi, key.roi_id), *([] if model is None else [(model, key.model_key)])]
    for name, an_id in pairs:
        if unicodedata.normalize("NFC", name) not in (folder_name(an_id), folder_name(an_id, escape_all=True)):
            return None
    is_recipe = recipe is None or folder_name(key.recipe_id) == recipe != DEFAULT_RECIPE
    return key if is_recipe and (model is None or not key.is_default_model) else None
