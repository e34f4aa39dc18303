"""Recipes: sets of artifacts that never mix. A recipe that lacks a model does not use another's."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import get_args

from backend.artifacts.files import replace, scratch_folder, sync_folder, sync_tree, writing
from backend.artifacts.folders import names_in_ours, recipe_folders, roi_folders
from backend.artifacts.layout import Kind, classify_path, walk
from backend.artifacts.model_key import DEFAULT_RECIPE, RECIPES_FOLDER, ModelKey, checked_recipe, folder_name
from backend.artifacts.stored_image import Label
from backend.errors import Conflict, NotFound
from backend.storage import ArtefactStore

_NOT_COPIED = frozenset({"heatmap", "lock", "temporary", "foreign", "version", "kept_memory"})
"""A copy is a recipe of its own: what was in force at the old one before was never in force there."""

_REMAINDERS: frozenset[Kind] = frozenset({"lock", "temporary", "heatmap", "index", "embeddings", "foreign", "version"})
"""What may lie in a recipe that holds nothing."""


class Recipes:
    """The recipes below the models folder of a store."""

    def __init__(self, store: ArtefactStore) -> None:
        self._store = store
        self._models_dir = store.models_dir

    def contents(self) -> dict[str, list[ModelKey]]:
        """Return the models of every recipe, of an emptied one none; ``default`` is always there.

        They are the ROIs that hold a memory or images, and the memories of other keys. A folder that no id leads to,
        such as an operator's copy, is none of them.

        Raises:
            StorageFailed: If a folder cannot be read although it may be.
        """
        self._store.folder.check()
        recipes: dict[str, list[ModelKey]] = {DEFAULT_RECIPE: []}
        recipes |= {recipe_id: [] for recipe_id in recipe_folders(self._models_dir)}
        rois = roi_folders(self._models_dir)
        found = {key for folder, roi in rois for key in _models(self._models_dir, folder, roi)}
        for key in sorted(found, key=_order):
            recipes.setdefault(key.recipe_id, []).append(key)
        return dict(sorted(recipes.items(), key=lambda each: (each[0] != DEFAULT_RECIPE, each[0])))

    def copy(self, source: str, target: str) -> list[ModelKey]:
        """Make a new recipe from an old one and return its models; it is there completely, or not at all.

        Raises:
            ReservedRecipe: If a name is malformed or reserved.
            NotFound: If there is no such recipe to copy.
            Conflict: If the new recipe exists.
            StorageFull, StorageFailed: If it cannot be written.
        """
        source, target = checked_recipe(source), checked_recipe(target)
        rois = {self._store.roi_folder(key): key for key in self.contents().get(source, [])}
        if not rois:
            raise NotFound(f"There is no recipe {source!r} with anything in it. GET /recipes lists them.")
        folder = self._folder(target)
        exists = Conflict(f"The recipe {target!r} exists. Choose another name.", details={"recipe_id": target})
        if target == DEFAULT_RECIPE or self.contents().get(target):
            raise exists
        entries = (entry for roi_folder in rois for entry in walk(self._models_dir, roi_folder))
        n_bytes = sum(entry.n_bytes for entry in entries if entry.artifact.kind not in _NOT_COPIED)
        self._store.with_room(lambda: self._store.disk.check(n_bytes), n_bytes)
        with writing(), scratch_folder(folder.parent) as temp:
            made = temp / folder.name
            for roi_folder, key in rois.items():
                with self._store.lock(key):  # so that no fit is caught half-way
                    for path, _, artifact, _ in walk(self._models_dir, roi_folder):
                        if artifact.kind == "unreadable":
                            raise PermissionError(errno.EACCES, "a part of the ROI may not be read", str(path))
                        if artifact.kind not in _NOT_COPIED:
                            copied = made / path.relative_to(self._folder(source))
                            copied.parent.mkdir(parents=True, exist_ok=True)
                            shutil.copy2(path, copied)
            if not made.exists():
                raise NotFound(f"There is nothing left in the recipe {source!r}: it was emptied meanwhile.")
            sync_tree(made)
            try:
                if folder.exists():
                    self._remove_emptied(target)
                made.rename(folder)
            except OSError as error:
                if not folder.exists():
                    raise
                raise exists from error
            sync_folder(folder.parent)
        self._store.disk.count(n_bytes)
        return self.contents()[target]

    def delete(self, recipe_id: str) -> None:
        """Remove an emptied recipe. What was set aside as damaged, or is not ours, keeps it from being one.

        Raises:
            ReservedRecipe: If the name is malformed or reserved.
            NotFound: If there is no such recipe.
            Conflict: If it holds anything, or is the default one.
            StorageFailed: If it cannot be removed.
        """
        recipe_id = checked_recipe(recipe_id)
        if recipe_id == DEFAULT_RECIPE:
            raise Conflict("The recipe 'default' is always there.", details={"recipe_id": recipe_id})
        if recipe_id not in self.contents():
            raise NotFound(f"There is no recipe {recipe_id!r}. GET /recipes lists them.")
        with writing():
            self._remove_emptied(recipe_id)
            sync_folder(self._folder(recipe_id).parent)

    def _remove_emptied(self, recipe_id: str) -> None:
        """Remove the folder of a recipe that holds nothing.

        It is moved away first and looked at then: whoever begins to store something in it at this moment has no lock
        any more, and is answered so.

        Raises:
            Conflict: If it holds anything.
            Unavailable: If somebody works in it.
        """
        folder = self._folder(recipe_id)
        for _, roi in roi_folders(self._models_dir):
            if roi.recipe_id == recipe_id:
                with self._store.lock(roi, timeout_s=0):
                    pass
        with scratch_folder(folder.parent) as temp:
            moved = temp / RECIPES_FOLDER / folder.name
            moved.parent.mkdir()
            replace(folder, moved)
            if all(entry.artifact.kind in _REMAINDERS for entry in walk(temp, moved)):
                return
            with suppress(OSError):
                replace(moved, folder)
            if moved.exists():  # Somebody has begun the recipe anew: what it held keeps a name of its own.
                replace(moved, folder.with_name(f"{folder.name[:40]}-kept-{token_hex(4)}"))
        raise Conflict(
            f"The recipe {recipe_id!r} is not empty. Delete its images first; one that was fitted is kept.",
            details={"recipe_id": recipe_id},
        )

    def _folder(self, recipe_id: str) -> Path:
        if recipe_id == DEFAULT_RECIPE:
            return self._models_dir
        return self._models_dir / RECIPES_FOLDER / folder_name(recipe_id)


def _models(models_dir: Path, folder: Path, roi: ModelKey) -> Iterator[ModelKey]:
    """Yield the models of a ROI's folder: its own where it holds a memory or images, and those of other keys."""
    stored = (name for label in get_args(Label) for name in names_in_ours(folder / "images" / label))
    if "memory.npz" in names_in_ours(folder) or any(name.endswith(".json") for name in stored):
        yield roi
    for name in names_in_ours(folder / "keys"):
        path = folder / "keys" / name / "memory.npz"
        key = classify_path(path.relative_to(models_dir).as_posix()).key
        if key is not None and path.name in names_in_ours(path.parent):
            yield key


def _order(key: ModelKey) -> tuple[str, str, str, bool, str]:
    return key.recipe_id, key.role_id, key.roi_id, not key.is_default_model, key.model_key
