"""Heat maps that were asked for as files: the newest few hundred of each model."""

from __future__ import annotations

from backend.artifacts.files import stamp
from backend.artifacts.model_key import ModelKey
from backend.artifacts.store import ArtefactStore

KEPT_HEATMAPS = 200


def save_heatmap(store: ArtefactStore, key: ModelKey, image_digest: str, png: bytes) -> str:
    """Write a heat map beside its model; return its path below the models folder, with forward slashes.

    Raises:
        StorageFull, StorageFailed: If it cannot be written.
    """
    folder = store.model_folder(key) / "heatmaps"
    path = folder / f"{image_digest}.png"
    store.write(path, png)
    # Another inspection may delete one of them meanwhile: it has no stamp then.
    for old in sorted(folder.glob("*.png"), key=lambda entry: stamp(entry) or (0, 0, 0))[:-KEPT_HEATMAPS]:
        store.remove(old)
    return path.relative_to(store.models_dir).as_posix()
