"""What each model of a recipe has, in short, without keeping its memory: there may be more of them than are cached."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_model import Stamps
from backend.calib import ScoreMode
from backend.errors import InspectionError
from backend.services.recipes import Recipes
from backend.storage import ArtefactStore

_KEPT: Final = 2000


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """What a model has.

    Attributes:
        fitted_at: When its memory was written, s since 1970; None where there is none.
        calibrated_at: The same of its calibration, which a fit renews.
        n_ng: Bad scores that the calibration rests on.
        fault: What is wrong with what is stored, and what to do; None where it is sound.
    """

    key: ModelKey
    is_fitted: bool = False
    is_calibrated: bool = False
    is_stale: bool = False
    extractor_id: str | None = None
    n_ok: int = 0
    n_ng: int = 0
    fitted_at: float | None = None
    calibrated_at: float | None = None
    threshold: float | None = None
    score_mode: ScoreMode | None = None
    fault: str | None = None


class Overview:
    """Sums up models; safe to call from many threads."""

    def __init__(self, store: ArtefactStore, recipes: Recipes) -> None:
        self._store = store
        self._recipes = recipes
        self._summaries: OrderedDict[ModelKey, tuple[Stamps, ModelSummary]] = OrderedDict()
        self._lock = threading.Lock()

    def of_recipe(self, recipe_id: str) -> Sequence[ModelSummary]:
        """Return what each model of a recipe has, in order of their ids; one that cannot be read says so itself.

        Raises:
            StorageFailed: If the models folder cannot be read.
        """
        return [self._summary(key) for key in self._recipes.contents().get(recipe_id, [])]

    def _summary(self, key: ModelKey) -> ModelSummary:
        try:
            stamps = self._store.stamps(key)
            with self._lock:
                known = self._summaries.get(key)
                if known is not None and known[0] == stamps:
                    self._summaries.move_to_end(key)
                    return known[1]
            summary = self._read(key)
        except InspectionError as error:
            return ModelSummary(key=key, fault=error.sentence)
        with self._lock:
            self._summaries[key] = stamps, summary
            while len(self._summaries) > _KEPT:
                self._summaries.popitem(last=False)
        return summary

    def _read(self, key: ModelKey) -> ModelSummary:
        model = self._store.load(key)
        bank, (memory, calib) = model.bank, model.stamps
        calibration = model.calibration
        return ModelSummary(
            key=key,
            is_fitted=bank is not None,
            is_calibrated=calibration is not None,
            is_stale=model.stale,
            extractor_id=None if bank is None else bank.extractor_id,
            n_ok=0 if bank is None else len(bank.image_digests),
            n_ng=0 if calibration is None else calibration.n_ng,
            fitted_at=None if memory is None else memory[0] / 1e9,
            calibrated_at=None if calibration is None or calib is None else calib[0] / 1e9,
            threshold=None if calibration is None else calibration.threshold,
            score_mode=None if calibration is None else calibration.score_mode,
        )
