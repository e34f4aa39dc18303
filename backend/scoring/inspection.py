"""What was found on one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.calib import Calibration, ScoreMode
from backend.scoring.anomaly_map import heatmap
from backend.scoring.image_score import image_scores
from backend.scoring.regions import Region

Decision = Literal["ok", "ng"]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found on one image.

    Attributes:
        score: The image score; larger is more anomalous; in [0, 2].
        calibration: What the score was judged by; None when the ROI is not calibrated.
        map: [H, W] float32 anomaly map in pixels of the uploaded image; 0 outside the mask.
        mask: [H, W] bool, the pixels that count.
        regions: Areas at or above the threshold, largest first; empty when not calibrated.
        grid_hw: Patch grid.
        heatmap_full_scale: The map value that the heat map shows as 255.
        params: Facts about how this came about, JSON types.
        timings_ms: Milliseconds by stage.
    """

    score: float
    calibration: Calibration | None
    map: NDArray[np.float32] = field(compare=False)
    mask: NDArray[np.bool_] = field(compare=False)
    regions: tuple[Region, ...]
    grid_hw: tuple[int, int]
    heatmap_full_scale: float
    params: Mapping[str, Any]
    timings_ms: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def threshold(self) -> float | None:
        """Scores above it are ``ng``; None without a calibration."""
        return None if self.calibration is None else self.calibration.threshold

    @property
    def decision(self) -> Decision | None:
        """``ok``, ``ng``, or None without a calibration."""
        if self.calibration is None:
            return None
        return "ng" if self.score > self.calibration.threshold else "ok"

    @property
    def heatmap(self) -> NDArray[np.uint8]:
        """[H, W] uint8: 0 = distance 0 or outside the mask, 128 = the threshold, 255 = twice the threshold or more."""
        return heatmap(self.map, self.heatmap_full_scale)

    def scores_under(self, percentile: float) -> dict[ScoreMode, float]:
        """Return the statistics of the map at another percentile; see ``image_scores``."""
        return image_scores(self.map, self.mask, percentile=percentile)
