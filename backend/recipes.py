"""Recipes: sets of artefacts that never mix. A recipe that lacks a model does not borrow another's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backend.errors import Conflict, NotFound
from backend.files import TEMP_PREFIX, sync_folder
from backend.model_key import DEFAULT_RECIPE, RECIPES_FOLDER, ModelKey, checked_recipe, id_of_folder
from backend.storage import ArtefactStore


class Recipes:
    """The recipes below one models folder."""

    def __init__(self, models_dir: Path, store: ArtefactStore) -> None:
        self._models_dir = models_dir
        self._store = store

    def contents(self) -> dict[str, list[ModelKey]]:
        """Return the models of every recipe that has any; ``default`` is always there."""
        others = self._models_dir / RECIPES_FOLDER
        names = sorted(entry.name for entry in _folders(others)) if others.exists() else []
        return {recipe: list_models(self._folder(recipe), recipe) for recipe in [DEFAULT_RECIPE, *names]}

    def copy(self, source: str, target: str) -> list[ModelKey]:
        """Make a new recipe from an old one and return its models; it is there completely, or not at all.

        Raises:
            ReservedRecipe: If a name is malformed or reserved.
            NotFound: If there is no such recipe to copy.
            Conflict: If the new recipe exists.
        """
        source, target = checked_recipe(source), checked_recipe(target)
        models = list_models(self._folder(source), source)
        if not models:
            raise NotFound(f"There is no recipe {source!r} with anything in it. GET /recipes lists them.")
        if target == DEFAULT_RECIPE or self._folder(target).exists():
            raise Conflict(f"The recipe {target!r} exists. Choose another name.", details={"recipe_id": target})
        folder = self._folder(target)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=folder.parent) as temp:
            made = Path(temp) / target
            for roi_folder, key in {self._store.roi_folder(key): key for key in models}.items():
                relative = roi_folder.relative_to(self._folder(source))
                with self._store.lock(key):  # so that no fit is caught half-way
                    shutil.copytree(roi_folder, made / relative, ignore=shutil.ignore_patterns(".*", "heatmaps"))
            try:
                made.rename(folder)
            except OSError as error:
                raise Conflict(f"The recipe {target!r} exists. Choose another name.") from error
        sync_folder(folder.parent)
        return list_models(folder, target)

    def _folder(self, recipe_id: str) -> Path:
        if recipe_id == DEFAULT_RECIPE:
            return self._models_dir
        return self._models_dir / RECIPES_FOLDER / recipe_id


def list_models(folder: Path, recipe_id: str) -> list[ModelKey]:
    """Return the models below a recipe's folder: ROIs that hold a memory or images, and memories of other keys."""
    keys = []
    for role in _folders(folder):
        if role.name == RECIPES_FOLDER and recipe_id == DEFAULT_RECIPE:
            continue
        for roi in _folders(role):
            role_id, roi_id = id_of_folder(role.name), id_of_folder(roi.name)
            if (roi / "memory.npz").exists() or (roi / "images").exists():
                keys.append(ModelKey(recipe_id=recipe_id, role_id=role_id, roi_id=roi_id))
            if (roi / "keys").exists():
                keys += [
                    ModelKey(recipe_id=recipe_id, role_id=role_id, roi_id=roi_id, model_key=id_of_folder(entry.name))
                    for entry in _folders(roi / "keys")
                    if (entry / "memory.npz").exists()
                ]
    return keys


def _folders(folder: Path) -> Iterator[Path]:
    if folder.exists():
        yield from sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
