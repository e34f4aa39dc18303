"""The artefacts on disk."""

from backend.artifacts.store import LOCK_TIMEOUT_S, ArtefactStore, StoredModel

__all__ = ["LOCK_TIMEOUT_S", "ArtefactStore", "StoredModel"]
