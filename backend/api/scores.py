"""The scores of a ROI's stored images: what a histogram with a threshold to move needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from backend.api.dependencies import KeyOfQuery, ServiceOf, identity
from backend.api.fields import Amount, Answer, Count, Percent, Score, Share, Stale, ThresholdSettings
from backend.api.routing import Route
from backend.api.schemas import CalibrationFacts
from backend.artifacts.stored_image import Label
from backend.calib import ScoreMode
from backend.serving.access import INSPECT

router = APIRouter(tags=["models"], route_class=Route)


class ScoredImage(BaseModel):
    """An image and its scores."""

    label: Label = Field(description="Class.", examples=["ok"])
    filename: str | None = Field(
        description="As listed by /datasets/list; null where the image is stored no more.",
        examples=["a-1f3c5e7a9b2d.png"],
    )
    image_digest: str = Field(description="SHA-256 of the decoded pixels.", examples=["1f3c5e7a9b2d4f61…"])
    part_id: str = Field(
        description="The part it shows: of several images of one part and class, the largest score counts.",
        examples=["part-17"],
    )
    scores: dict[ScoreMode, Score] = Field(description="By score mode.", examples=[{"max": 0.47}])
    suspect: bool = Field(description="It stands out among the good ones.", examples=[False])
    near_identical: bool = Field(description="Another learned image shows the same.", examples=[False])


class Promise(BaseModel):
    """What a threshold that is set by hand promises about good parts that nobody has seen."""

    expected_false_alarm_rate: Share = Field(description="Share of them above it, on average.", examples=[0.02])
    false_alarm_rate_upper_95: Share = Field(
        description="The share that is not exceeded, with 95 % confidence.", examples=[0.058]
    )


class ScoresAnswer(Answer):
    """The scores of a ROI's stored images, all measured with one memory."""

    memory_checksum: str = Field(description="The memory.", examples=["1f3c5e7a9b2d4f61…"])
    score_mode: ScoreMode = Field(
        description="The mode in force, or what a first calibration that names none takes.", examples=["area"]
    )
    score_percentile: Percent = Field(description="Of `percentile` and `top_mean` here.", examples=[99])
    blur_sigma: Amount = Field(description="Blur of the map, px.", examples=[2.0])
    area_mm2_thr: Amount = Field(description="Of `area` here, mm².", examples=[0.5])
    threshold: Score | None = Field(description="In force; null: not calibrated.", examples=[0.56])
    calib: CalibrationFacts | None = Field(description="The calibration in force, as in /manifest.")
    calibration_stale: Stale
    thresholds: dict[ScoreMode, CalibrationFacts] = Field(
        description="By mode: what /calibrate_ng with `dry_run` answers to `score_mode` and the settings of this call. "
        "A mode is missing where it refuses."
    )
    n_ok: Count = Field(description="Different good parts that promises rest on.", examples=[30])
    promises: list[Promise] = Field(
        description="What a `threshold` set by hand promises, by how many of the good images' `part_id` score no more "
        "than it: the first is of none, the last of all."
    )
    images: list[ScoredImage] = Field(description="Learned good images without their own part, then stored bad ones.")


@router.get("/scores", summary="The scores that a threshold can be chosen by", **INSPECT)
def scores(
    request: Request, service: ServiceOf, key: KeyOfQuery, settings: Annotated[ThresholdSettings, Query()]
) -> ScoresAnswer:
    """Score the learned good images without their own part, and the stored bad ones, under every score mode."""
    found = service.stored_scores(key, **settings.model_dump())
    return ScoresAnswer(
        **identity(request, key),
        memory_checksum=found.memory_checksum,
        score_mode=found.rule.mode,
        score_percentile=found.rule.percentile,
        blur_sigma=found.rule.blur_sigma,
        area_mm2_thr=found.rule.area_mm2_thr,
        threshold=None if found.in_force is None else found.in_force.threshold,
        calib=None if found.in_force is None else CalibrationFacts(**found.in_force.to_fields()),
        calibration_stale=found.is_stale,
        thresholds={mode: CalibrationFacts(**each.to_fields()) for mode, each in found.thresholds.items()},
        n_ok=found.promised.n,
        promises=[Promise(**vars(each)) for each in found.promises],
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
