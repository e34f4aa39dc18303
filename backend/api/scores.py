"""The scores of a ROI's stored images: what a histogram with a threshold to move needs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from backend.api.dependencies import KeyOfQuery, ServiceOf, identity
from backend.api.fields import Answer, Count, Score, Share
from backend.api.routing import Route
from backend.artifacts.stored_image import Label
from backend.calib import Method, ScoreMode
from backend.serving.access import INSPECT

router = APIRouter(tags=["models"], route_class=Route)


class ScoredImage(BaseModel):
    """An image and its scores."""

    label: Label = Field(description="Class.", examples=["ok"])
    filename: str = Field(description="As listed; the digest where it is stored no more.", examples=["a-1f3c.png"])
    image_digest: str = Field(description="SHA-256 of the decoded pixels.", examples=["1f3c5e7a9b2d4f61…"])
    part_id: str = Field(description="The part it shows; near-identical images have one.", examples=["part-17"])
    scores: dict[ScoreMode, Score] = Field(description="By score mode.", examples=[{"max": 0.47}])
    suspect: bool = Field(description="It stands out among the good ones.", examples=[False])
    near_identical: bool = Field(description="Another learned image shows the same.", examples=[False])


class ThresholdOfMode(BaseModel):
    """What a calibration from the stored images would set."""

    threshold: Score = Field(description="Scores above are ng.", examples=[0.56])
    method: Method = Field(description="As in /calibrate_ng.", examples=["ok_percentile"])
    n_ok: Count = Field(description="Good parts.", examples=[50])
    ok_rejected: Count = Field(description="Good parts above it.", examples=[0])
    n_ng: Count = Field(description="Bad parts.", examples=[2])
    ng_caught: Count = Field(description="Bad parts above it.", examples=[2])
    expected_false_alarm_rate: Share = Field(description="Times n: false alarms among n good parts.", examples=[0.02])
    false_alarm_rate_upper_95: Share = Field(description="Upper bound of that, 95 % sure.", examples=[0.058])


class ScoresAnswer(Answer):
    """The scores of a ROI's stored images."""

    memory_checksum: str = Field(description="The memory that they were measured with.", examples=["1f3c5e7a9b2d"])
    score_mode: ScoreMode = Field(description="The mode in force.", examples=["area"])
    score_percentile: float = Field(gt=0, le=100, description="Of `percentile` and `top_mean`.", examples=[99.5])
    blur_sigma: float = Field(ge=0, description="Blur of the map, px.", examples=[2.0])
    area_mm2_thr: float = Field(ge=0, description="Of `area`, mm².", examples=[0.5])
    threshold: Score | None = Field(description="In force; null: not calibrated.", examples=[0.56])
    calibration_stale: bool = Field(description="As in /state.", examples=[False])
    thresholds: dict[ScoreMode, ThresholdOfMode] = Field(
        description="By mode: what /calibrate_ng without scores would set; a mode without good parts enough is missing."
    )
    images: list[ScoredImage] = Field(description="Learned good images without their own part, then stored bad ones.")
    warnings: list[str] = Field([], description="What could not be scored.", examples=[[]])


@router.get("/scores", summary="The scores that a threshold can be chosen by", **INSPECT)
def scores(request: Request, service: ServiceOf, key: KeyOfQuery) -> ScoresAnswer:
    """Score the learned good images without their own part, and the stored bad ones, under every score mode."""
    found, model = service.score_listing.get(key), service.describe(key)
    return ScoresAnswer(
        **identity(request, key),
        memory_checksum=model.fitted_bank(key).checksum,
        score_mode=found.rule.mode,
        score_percentile=found.rule.percentile,
        blur_sigma=found.rule.blur_sigma,
        area_mm2_thr=found.rule.area_mm2_thr,
        threshold=None if model.calibration is None else model.calibration.threshold,
        calibration_stale=model.stale,
        thresholds={
            mode: ThresholdOfMode(**{**vars(each), **vars(each.bounds)}) for mode, each in found.thresholds.items()
        },
        images=[
            ScoredImage(
                label=image.label,
                filename=image.file_name,
                image_digest=image.digest,
                part_id=image.part_id,
                scores=dict(image.scores),
                suspect=image.is_suspect,
                near_identical=image.is_near_identical,
            )
            for image in found.images
        ],
        warnings=list(found.warnings),
    )
