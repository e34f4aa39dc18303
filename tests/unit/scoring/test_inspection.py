from __future__ import annotations

import numpy as np
import pytest

from backend.calib import ScoreRule
from backend.roi_mask import Circle, shape_mask
from backend.scoring.anomaly_map import anomaly_map
from backend.scoring.inspection import Inspection
from tests.testkit.fakes import grid_placement


def test_the_heat_map_of_an_inspection_is_black_outside_the_mask():
    mask = shape_mask(Circle(cx=30, cy=30, r=20), (64, 64))
    image_map = anomaly_map(np.full(64, 0.9, np.float32), grid_placement(8, 8, cell_px=8), mask)
    inspection = Inspection(
        measured_score=0.9,
        calibration=None,
        map=image_map,
        mask=mask,
        regions=(),
        grid_hw=(8, 8),
        heatmap_full_scale=1.0,
        params={"mm_per_px": 0.2},
        timings_ms={},
    )
    assert (inspection.heatmap[~mask] == 0).all()
    assert (inspection.heatmap[mask] == 230).all()  # 0.9 · 256 = 230.4
    rule = ScoreRule(mode="percentile", percentile=50.0, blur_sigma=1.0, area_mm2_thr=1.0)
    assert inspection.score_under(rule) == pytest.approx(0.9)
