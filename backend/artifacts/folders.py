"""The folders of a models folder: where a ROI's is, and which there are."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

from backend.artifacts.files import TEMP_PREFIX, names_in
from backend.artifacts.foreign import is_of_system, pass_over
from backend.artifacts.layout import OWN_FOLDERS, classify_path, may_hold_ours
from backend.artifacts.model_key import RECIPES_FOLDER, ModelKey, folder_name
from backend.errors import StorageFailed


def child_folder(parent: Path, an_id: str) -> Path:
    """Return the folder of an id below a parent.

    The plain name, unless it is taken by an id that differs from this one only by case: a case-insensitive file system
    would mix the two up, so the second gets the fully escaped name.
    """
    escaped, plain = folder_name(an_id, escape_all=True), folder_name(an_id)
    names = names_in(parent)
    # A folder whose name is in another Unicode normal form, as some systems and copies leave it, is the same id's.
    present = {unicodedata.normalize("NFC", name): name for name in sorted(names, key=_is_composed)}
    if escaped in present:
        return parent / present[escaped]
    if plain in present:
        return parent / present[plain]
    is_taken = plain.casefold() in {entry.casefold() for entry in present}
    return parent / (escaped if is_taken else plain)


def _is_composed(name: str) -> bool:
    return unicodedata.is_normalized("NFC", name)


def recipe_folders(models_dir: Path) -> Iterator[str]:
    """Yield the ids of the recipes that have a folder, but for the default one, which needs none.

    Raises:
        StorageFailed: If a folder cannot be read although it may be.
    """
    for folder, _ in _folders_in(models_dir, RECIPES_FOLDER):
        yield folder.name


def roi_folders(models_dir: Path) -> Iterator[tuple[Path, ModelKey]]:
    """Yield the folders of all ROIs, whatever they hold, with the ROI's own model.

    Raises:
        StorageFailed: If a folder cannot be read although it may be.
    """
    of_recipes = [f"{RECIPES_FOLDER}/{recipe}" for recipe in recipe_folders(models_dir)]
    for recipe in ("", *of_recipes):
        for _, role in _folders_in(models_dir, recipe):
            if role in (RECIPES_FOLDER, *OWN_FOLDERS):
                continue
            for folder, name in _folders_in(models_dir, role):
                if (key := classify_path(f"{name}/memory.npz").key) is not None:
                    yield folder, key


def _folders_in(models_dir: Path, parent: str) -> Iterator[tuple[Path, str]]:
    """Yield the folders in a folder that can hold files of ours, with their paths below the models folder."""
    for each in names_in_ours(models_dir / parent):
        name = f"{parent}/{each}" if parent else each
        path = models_dir / name
        try:
            is_folder = path.is_dir()
        except PermissionError:
            is_folder = False
            pass_over(path, "it may not be read")
        if not is_folder or each.startswith(TEMP_PREFIX):
            continue
        if may_hold_ours(name) and not is_of_system(each):
            yield path, name
        else:
            pass_over(path, "it is not of this service")


def names_in_ours(folder: Path) -> list[str]:
    """Return the names in a folder in order, none where there is no such folder or where it may not be read.

    Raises:
        StorageFailed: If it cannot be read for another reason.
    """
    try:
        return sorted(names_in(folder))
    except StorageFailed as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        pass_over(folder, "it may not be read")
        return []
