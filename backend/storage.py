"""The stored memory and calibration of a ROI, for scripts."""

from __future__ import annotations

from pathlib import Path

from backend.artifacts.model_key import ModelKey
from backend.artifacts.roi_locks import LOCK_TIMEOUT_S
from backend.artifacts.store import ArtefactStore
from backend.artifacts.stored_model import StoredModel
from backend.artifacts.versions import Made
from backend.calib import Calibration
from backend.memory_bank.bank import MemoryBank
from backend.settings import Settings

__all__ = ["LOCK_TIMEOUT_S", "ArtefactStore", "StoredModel", "load", "save"]


def load(role_id: str, roi_id: str, *, models_dir: Path | None = None) -> StoredModel:
    """Return what is stored of a ROI of the default recipe: ``bank`` is its memory, ``calibration`` what belongs to it.

    The bank of a ROI that was never fitted is None. The models folder is by default that of the environment's settings
    (``BDI_MODELS_DIR``).

    Raises:
        InvalidId: If an id cannot name a folder.
        ArtefactCorrupt: If the memory is damaged; ``ArtefactOutdated`` if an older version of this service wrote it.
        StorageFailed: If a file cannot be read.
    """
    return _store(models_dir).load(ModelKey(role_id=role_id, roi_id=roi_id))


def save(
    role_id: str,
    roi_id: str,
    bank: MemoryBank,
    calibration: Calibration | None = None,
    *,
    models_dir: Path | None = None,
) -> None:
    """Make a memory, and its calibration where it brings one, the ROI's own in one switch; a service may run.

    Raises:
        InvalidId: If an id cannot name a folder.
        Unavailable: If somebody else fits the ROI for long.
        StorageFull, StorageFailed: If it cannot be written; the old memory serves on.
    """
    store, key = _store(models_dir), ModelKey(role_id=role_id, roi_id=roi_id)
    with store.lock(key):
        store.save_bank(key, bank, calibration, made=Made(kind="fit"))


def _store(models_dir: Path | None) -> ArtefactStore:
    if models_dir is not None:
        return ArtefactStore(models_dir)
    settings = Settings()
    return ArtefactStore(settings.models_dir, keep_versions=settings.keep_versions)
