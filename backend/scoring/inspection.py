"""What was found on one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.calib import ScoreMode
from backend.scoring.anomaly_map import heatmap
from backend.scoring.image_score import image_scores
from backend.scoring.regions import Region

Decision = Literal["ok", "ng"]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found on one image.

    Attributes:
        score: The image score; larger is more anomalous; in [0, 2].
        threshold: Scores above it are ``ng``; None when the ROI is not calibrated.
        decision: ``ok``, ``ng``, or None when the ROI is not calibrated.
        map: [H, W] float32 anomaly map in pixels of the uploaded image; 0 outside the mask.
        mask: [H, W] bool, the pixels that count.
        regions: Areas at or above the threshold, largest first; empty when not calibrated.
        grid_hw: Patch grid.
        heatmap_full_scale: The map value that the heat map shows as 255.
        params: Facts about how this came about, JSON types.
        timings_ms: Milliseconds by stage.
    """

    score: float
    threshold: float | None
    decision: Decision | None
    map: NDArray[np.float32] = field(compare=False)
    mask: NDArray[np.bool_] = field(compare=False)
    regions: tuple[Region, ...]
    grid_hw: tuple[int, int]
    heatmap_full_scale: float
    params: Mapping[str, Any]
    timings_ms: Mapping[str, float] = field(compare=False)

    @property
    def heatmap(self) -> NDArray[np.uint8]:
        """[H, W] uint8: 0 = distance 0 or outside the mask, 128 = the threshold, 255 = twice the threshold or more."""
        return heatmap(self.map, self.heatmap_full_scale)

    def scores_under(self, percentile: float) -> dict[ScoreMode, float]:
        """Return the statistics of the map at another percentile; see ``image_scores``."""
        return image_scores(self.map, self.mask, percentile=percentile)
