"""From the service's own types to the answers of the HTTP interface."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from backend.api.schemas import EngineAnswer, FitAnswer, RegionAnswer, ScoreSummary
from backend.extractors.base import FeatureExtractor, HasEngine
from backend.imaging.image_codec import encode_png
from backend.scoring.inspection import Inspection
from backend.scoring.regions import Region
from backend.services.fit_request import FitReport


def fit_answer(report: FitReport, extractor_name: str, identity: Mapping[str, str]) -> FitAnswer:
    """Return the answer to a fit."""
    bank, summary = report.bank, report.scores.summary()
    return FitAnswer(
        **identity,
        n_ok_total=len(bank.image_digests),
        n_new=report.n_new,
        n_duplicates=report.n_duplicates,
        n_parts=bank.n_parts,
        n_embeddings=bank.n_embeddings,
        coreset_size=len(bank.vectors),
        coreset_rate_requested=bank.options.coreset_rate,
        coreset_rate_applied=bank.coreset_rate_applied,
        token_shape=bank.placement.grid_hw,
        cell_mm=bank.placement.cell_mm(bank.mm_per_px),
        mm_per_px=bank.mm_per_px,
        checksum=bank.checksum,
        extractor=extractor_name,
        ok_scores=ScoreSummary.model_validate(summary) if summary and bank.n_parts >= 2 else None,
        suggested_threshold=report.scores.suggested_threshold(),
        calibration=report.calibration,
        threshold=report.threshold,
        warnings=list(report.warnings),
        timings_ms=dict(report.timings_ms),
    )


def engine_answer(extractor: FeatureExtractor | None) -> EngineAnswer | None:
    """Return what computes an extractor's network, or None where there is none."""
    return EngineAnswer(**asdict(extractor.engine_facts())) if isinstance(extractor, HasEngine) else None


def region_answers(inspection: Inspection) -> list[RegionAnswer]:
    """Return the regions of an inspection."""
    return [_region(region) for region in inspection.regions]


def heatmap_base64(inspection: Inspection) -> str:
    """Return the heat map of an inspection as a PNG in base64."""
    return base64.b64encode(encode_png(inspection.heatmap)).decode()


def inspection_log_fields(inspection: Inspection, timings_ms: Mapping[str, float]) -> dict[str, Any]:
    """Return what the log says of an inspection."""
    return {
        "score": inspection.score,
        "threshold": inspection.threshold,
        "decision": inspection.decision or "none",
        "image_digest": inspection.params["image_digest"],
        "timings_ms": {stage: round(elapsed_ms, 3) for stage, elapsed_ms in timings_ms.items()},
    }


def _region(region: Region) -> RegionAnswer:
    x, y, w, h = region.bbox_xywh_px
    # Our own numbers need no validation, and a part may have many regions.
    return RegionAnswer.model_construct(
        bbox=region.bbox_xywh_px,
        x=x,
        y=y,
        w=w,
        h=h,
        area_px=region.area_px,
        area_mm2=region.area_mm2,
        peak=region.peak_score,
        contour=list(region.contour_xy),
    )
