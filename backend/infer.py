"""Inspecting from a script, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.model_key import ModelKey
from backend.roi_mask import parse_shape, shape_from_fields
from backend.scoring.inspection import Inspection, Overrides
from backend.services.inspection import InspectionService
from backend.wiring import script_service

__all__ = ["Inspection", "infer_one"]


def infer_one(
    image: NDArray[np.uint8] | bytes,
    role_id: str,
    roi_id: str,
    mm_per_px: float,
    shape: str | Mapping[str, Any] | None = None,
    k: int | None = None,
    p_score: float | None = None,
    blur_sigma: float | None = None,
    area_mm2_thr: float | None = None,
    *,
    service: InspectionService | None = None,
) -> Inspection:
    """Return the inspection of one image by the stored artefacts of a ROI; for scripts, without a server.

    A value that is left out is the ROI's own: what it was fitted and calibrated with.

    Args:
        image: [H, W, 3] uint8 BGR pixels, or the bytes of an image file.
        role_id: Role.
        roi_id: ROI.
        mm_per_px: Millimetres per pixel of the image.
        shape: The shape, as JSON text or object; None for the whole image.
        k: Neighbours that a distance is the mean of (ordered: 1). A ``k`` or a ``blur_sigma`` that is given and is not
            the ROI's own gives a score without a decision: its threshold is on another scale.
        p_score: Percentile of the map that is the score (ordered: 99), for a ROI without a calibration.
        blur_sigma: Standard deviation of the map's blur, px (ordered: 1.0).
        area_mm2_thr: Area that counts, mm² (ordered: 1.0), for a ROI without a calibration.
        service: Where the artefacts are; by default a service of the environment's settings.

    Raises:
        InspectionError: As ``InspectionService.infer``.
    """
    return (service if service is not None else script_service()).infer(
        ModelKey(role_id=role_id, roi_id=roi_id),
        image,
        mm_per_px=mm_per_px,
        shape=shape_from_fields(shape) if isinstance(shape, Mapping) else parse_shape(shape),
        overrides=Overrides(k=k, score_percentile=p_score, blur_sigma=blur_sigma, area_mm2_thr=area_mm2_thr),
    )
