"""The models of the ROIs in use, kept in memory and read again when their files change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.model_key import ModelKey
from backend.calib import Calibration
from backend.errors import MemoryNotFound
from backend.imaging.position_map import appearance_of
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.image_ranges import LearnedRanges, learn_ranges
from backend.scoring.leave_one_out import leave_one_out_scores
from backend.services.shape_thresholds import ShapeThresholds
from backend.storage import ArtefactStore, StoredModel

_SHAPES_KEPT = 8
"""A ROI is inspected under one shape or a few; whoever sends another one each time costs himself some milliseconds."""

_WHOLE_RANGE = 2.0  # the largest distance between unit rows


class LoadedModel(StoredModel):
    """A model as it was stored when it was read, and what is worth computing only once of it."""

    @property
    def last_calibration(self) -> Calibration | None:
        """The calibration of this memory, else the newest; None where there is none, or where it is damaged."""
        checksum = None if self.bank is None else self.bank.checksum
        own = (each for each in self.calibrations if each.memory_checksum == checksum)
        return next(own, next(iter(self.calibrations), None))

    @cached_property
    def heatmap_full_scale(self) -> float:
        """What 255 stands for in a heat map.

        Twice the threshold; without one, twice the p99 of the memory's own leave-one-image-out scores; without those,
        the whole range of distances.
        """
        if self.calibration_fault is None and self.calibration is not None:
            return 2 * self.calibration.threshold
        summary = None if self.bank is None else leave_one_out_scores(self.bank, self.bank.options.rule).summary()
        return _WHOLE_RANGE if summary is None or summary["p99"] <= 0 else 2 * float(summary["p99"])

    @cached_property
    def _ranges_by_area(self) -> dict[bytes, LearnedRanges]:
        return {}

    def image_ranges(self, bank: MemoryBank, mask_cells: NDArray[np.bool_]) -> LearnedRanges:
        """Return the ranges of the good images' statistics in an area, [cells] bool of their position maps."""
        key = mask_cells.tobytes()
        found = self._ranges_by_area.get(key)
        if found is None:
            distinct = [bank.distinct_parts[digest] for digest in bank.image_digests]
            found = learn_ranges(appearance_of(bank.position_maps), distinct, mask_cells)
            if len(self._ranges_by_area) >= _SHAPES_KEPT:
                self._ranges_by_area.clear()
            self._ranges_by_area[key] = found
        return found

    @cached_property
    def shape_thresholds(self) -> ShapeThresholds | None:
        """The thresholds under shapes; None without a memory or a calibration of it."""
        if self.bank is None or self.calibration is None:
            return None
        return ShapeThresholds(self.bank, self.calibration)

    def fitted_bank(self, key: ModelKey) -> MemoryBank:
        """Return the memory.

        Raises:
            MemoryNotFound: If the ROI was never fitted.
        """
        if self.bank is None:
            raise MemoryNotFound(
                f"memory not found for {key}: run /fit_ok first with good images of this ROI.",
                details={"role_id": key.role_id, "roi_id": key.roi_id, "model_key": key.model_key},
            )
        return self.bank


class ModelCache:
    """A least-recently-used cache over the store. A model that another process replaced is noticed on the next get."""

    def __init__(self, store: ArtefactStore, max_entries: int) -> None:
        self._store = store
        self._max_entries = max_entries
        self._models: OrderedDict[ModelKey, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: ModelKey) -> LoadedModel:
        """Return the model as it is stored now.

        Raises:
            ArtefactCorrupt: If the memory is damaged.
            StorageFailed: If a file cannot be read.
        """
        stamps = self._store.stamps(key)
        with self._lock:
            cached = self._models.get(key)
            if cached is not None and cached.stamps == stamps:
                self._models.move_to_end(key)
                return cached
        model = LoadedModel(**vars(self._store.load(key)))
        if model.bank is not None:  # Absent ROIs take no place: anyone can name endless ids.
            with self._lock:
                self._models[key] = model
                self._models.move_to_end(key)
                while len(self._models) > self._max_entries:
                    self._models.popitem(last=False)
        return model
