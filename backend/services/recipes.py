"""Recipes: sets of artifacts that never mix. A recipe that lacks a model does not use another's."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

from backend.artifacts.files import scratch_folder, sync_folder, sync_tree, writing
from backend.artifacts.layout import classify_path, walk
from backend.artifacts.model_key import DEFAULT_RECIPE, RECIPES_FOLDER, ModelKey, checked_recipe, folder_name
from backend.errors import Conflict, NotFound
from backend.storage import ArtefactStore

_NOT_COPIED = frozenset({"heatmap", "lock", "temporary"})


class Recipes:
    """The recipes below the models folder of a store."""

    def __init__(self, store: ArtefactStore) -> None:
        self._store = store
        self._models_dir = store.models_dir

    def contents(self) -> dict[str, list[ModelKey]]:
        """Return the models of every recipe that has any; ``default`` is always there.

        They are the ROIs that hold a memory or images, and the memories of other keys. A folder that no id leads to,
        such as an operator's copy, is none of them.
        """
        found: set[ModelKey] = set()
        for pattern in ("*/*", f"{RECIPES_FOLDER}/*/*/*"):
            for roi in self._models_dir.glob(pattern):
                one_image = islice(roi.glob("images/*/*.json"), 1)
                for path in (*roi.glob("memory.npz"), *roi.glob("keys/*/memory.npz"), *one_image):
                    artifact = classify_path(path.relative_to(self._models_dir).as_posix())
                    found |= set() if artifact.key is None else {artifact.key}
        recipes: dict[str, list[ModelKey]] = {DEFAULT_RECIPE: []}
        for key in sorted(found, key=_order):
            recipes.setdefault(key.recipe_id, []).append(key)
        return recipes

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
        if target == DEFAULT_RECIPE or folder.exists():
            raise exists
        n_bytes = sum(entry.n_bytes for roi_folder in rois for entry in walk(self._models_dir, roi_folder))
        self._store.disk.check(n_bytes)
        with writing(), scratch_folder(folder.parent) as temp:
            made = temp / folder.name
            for roi_folder, key in rois.items():
                with self._store.lock(key):  # so that no fit is caught half-way
                    for path, _, artifact, _ in walk(self._models_dir, roi_folder):
                        if artifact.kind not in _NOT_COPIED:
                            copied = made / path.relative_to(self._folder(source))
                            copied.parent.mkdir(parents=True, exist_ok=True)
                            shutil.copy2(path, copied)
            sync_tree(made)
            try:
                made.rename(folder)
            except OSError as error:
                if not folder.exists():
                    raise
                raise exists from error
            sync_folder(folder.parent)
        self._store.disk.count(n_bytes)
        return self.contents()[target]

    def _folder(self, recipe_id: str) -> Path:
        if recipe_id == DEFAULT_RECIPE:
            return self._models_dir
        return self._models_dir / RECIPES_FOLDER / folder_name(recipe_id)


def _order(key: ModelKey) -> tuple[str, str, str, bool, str]:
    return key.recipe_id, key.role_id, key.roi_id, not key.is_default_model, key.model_key
