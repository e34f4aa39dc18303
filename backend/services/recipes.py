"""Recipes: sets of artefacts that never mix. A recipe that lacks a model does not borrow another's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from backend.artifacts.files import scratch_folder, sync_folder, sync_tree, writing
from backend.artifacts.layout import files_below, id_leading_to, is_recipe_folder
from backend.artifacts.model_key import (
    DEFAULT_RECIPE,
    RECIPES_FOLDER,
    ModelKey,
    checked_recipe,
    folder_name,
    id_of_folder,
)
from backend.errors import Conflict, NotFound
from backend.storage import ArtefactStore


class Recipes:
    """The recipes below one models folder."""

    def __init__(self, models_dir: Path, store: ArtefactStore) -> None:
        self._models_dir = models_dir
        self._store = store

    def contents(self) -> dict[str, list[ModelKey]]:
        """Return the models of every recipe that has any; ``default`` is always there."""
        others = self._models_dir / RECIPES_FOLDER
        named = {id_of_folder(entry.name): entry for entry in _folders(others) if is_recipe_folder(entry.name)}
        found = {name: list_models(entry, name) for name, entry in named.items()}
        return {
            DEFAULT_RECIPE: list_models(self._models_dir, DEFAULT_RECIPE),
            **{name: models for name, models in found.items() if models},
        }

    def copy(self, source: str, target: str) -> list[ModelKey]:
        """Make a new recipe from an old one and return its models; it is there completely, or not at all.

        Raises:
            ReservedRecipe: If a name is malformed or reserved.
            NotFound: If there is no such recipe to copy.
            Conflict: If the new recipe exists.
            StorageFull, StorageFailed: If it cannot be written.
        """
        source, target = checked_recipe(source), checked_recipe(target)
        models = list_models(self._folder(source), source)
        if not models:
            raise NotFound(f"There is no recipe {source!r} with anything in it. GET /recipes lists them.")
        if target == DEFAULT_RECIPE or self._folder(target).exists():
            raise Conflict(f"The recipe {target!r} exists. Choose another name.", details={"recipe_id": target})
        folder = self._folder(target)
        rois = {self._store.roi_folder(key): key for key in models}
        n_bytes = sum(status.st_size for roi_folder in rois for _, status in files_below(roi_folder))
        with writing(), self._store.disk.room_for(folder, n_bytes), scratch_folder(folder.parent) as temp:
            made = temp / folder.name
            for roi_folder, key in rois.items():
                relative = roi_folder.relative_to(self._folder(source))
                with self._store.lock(key):  # so that no fit is caught half-way
                    shutil.copytree(roi_folder, made / relative, ignore=_not_copied, copy_function=_copy)
            sync_tree(made)
            try:
                made.rename(folder)
            except OSError as error:
                if not folder.exists():
                    raise
                raise Conflict(f"The recipe {target!r} exists. Choose another name.") from error
            sync_folder(folder.parent)
        return list_models(folder, target)

    def _folder(self, recipe_id: str) -> Path:
        if recipe_id == DEFAULT_RECIPE:
            return self._models_dir
        return self._models_dir / RECIPES_FOLDER / folder_name(recipe_id)


def list_models(folder: Path, recipe_id: str) -> list[ModelKey]:
    """Return the models below a recipe's folder: ROIs that hold a memory or images, and memories of other keys.

    A folder that no id leads to, such as an operator's copy, is none of them.
    """
    keys = []
    for role in _folders(folder):
        if role.name == RECIPES_FOLDER and recipe_id == DEFAULT_RECIPE:
            continue
        for roi in _folders(role):
            role_id, roi_id = id_leading_to(role.name), id_leading_to(roi.name)
            if role_id is None or roi_id is None:
                continue
            if (roi / "memory.npz").exists() or any(roi.glob("images/*/*.json")):
                keys.append(ModelKey(recipe_id=recipe_id, role_id=role_id, roi_id=roi_id))
            if (roi / "keys").exists():
                keys += [
                    ModelKey(recipe_id=recipe_id, role_id=role_id, roi_id=roi_id, model_key=model_key)
                    for entry in _folders(roi / "keys")
                    if (model_key := id_leading_to(entry.name)) is not None and (entry / "memory.npz").exists()
                ]
    return keys


def _not_copied(folder: str, names: list[str]) -> set[str]:
    # "heatmaps" below "keys" is a model of that name.
    return {name for name in names if name.startswith(".") or (name == "heatmaps" and Path(folder).name != "keys")}


def _copy(source: str, target: str) -> None:
    with writing():  # copytree turns the system's errors into texts
        shutil.copy2(source, target)


def _folders(folder: Path) -> Iterator[Path]:
    if folder.exists():
        yield from sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
