"""The answer to ``/infer``: what was found on one image, and what is said of the image itself.

Geometry is in pixels of the uploaded image. Scores and thresholds are distances in [0, 2]: larger is more anomalous.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.api.fields import (
    Amount,
    Box,
    Count,
    ModelReply,
    Pair,
    Percent,
    Score,
    Share,
    Size,
    Stale,
)
from backend.calib import ScoreMode
from backend.scoring.image_check import ImageCheck
from backend.scoring.regions import NearestGood, Region

Measure = Annotated[float, Field(json_schema_extra={"minimum": -1e9, "maximum": 1e9})]


class StatisticAnswer(BaseModel):
    """One statistic of an image beside its range on the good images."""

    value: Measure = Field(description="Grey levels, share, ratio or correlation.", examples=[104.2])
    low: Measure = Field(description="Smallest value of the good images.", examples=[92.1])
    high: Measure = Field(description="Largest value of the good images.", examples=[118.4])
    distance: Measure = Field(
        description="How far outside that range, in units of half of it or of a floor; negative below it, 0 inside.",
        examples=[0.0],
    )


class ImageCheckAnswer(BaseModel):
    """Whether the image can be one of this ROI at all: its light, sharpness, contrast, colour and layout."""

    verdict: Literal["ok", "unusual", "foreign"] = Field(
        description="`unusual`: the largest distance is above 1.2, a warning says what. `foreign`: above 2; it is "
        "no image of this ROI, and `ng` unless the service only warns.",
        examples=["ok"],
    )
    distance: Amount = Field(description="The largest distance, whatever its sign.", examples=[0.0])
    statistics: dict[str, StatisticAnswer] = Field(
        description="What was compared.",
        examples=[{"level": {"value": 104.2, "low": 92.1, "high": 118.4, "distance": 0.0}}],
    )

    @classmethod
    def of(cls, check: ImageCheck | None) -> ImageCheckAnswer | None:
        """Return the answer about a check, or None without one."""
        if check is None:
            return None
        statistics = {name: StatisticAnswer.model_construct(**vars(found)) for name, found in check.statistics.items()}
        return cls(verdict=check.verdict, distance=check.distance, statistics=statistics)


class NearestAnswer(BaseModel):
    """A place of a good part."""

    image_digest: str = Field(description="SHA-256 of the good image's pixels.", examples=["1f3c5e7a9b2d4f61…"])
    name: str | None = Field(
        description="Its file name in the data set; null if it is no longer stored.",
        examples=["roi-1f3c5e7a9b2d.png"],
    )
    x: Count = Field(description="Left, px of the good image.", examples=[112])
    y: Count = Field(description="Top, px.", examples=[84])
    w: Count = Field(description="Width, px.", examples=[14])
    h: Count = Field(description="Height, px.", examples=[14])

    @classmethod
    def of(cls, nearest: NearestGood | None) -> NearestAnswer | None:
        """Return the answer about a place; not validated, as a region's."""
        if nearest is None:
            return None
        x, y, w, h = nearest.bbox_xywh_px
        return cls.model_construct(image_digest=nearest.image_digest, name=nearest.name, x=x, y=y, w=w, h=h)


class RegionAnswer(BaseModel):
    """One area where the map is above the threshold."""

    bbox: Box = Field(description="x, y, w, h, px.", examples=[[120, 88, 14, 6]])
    x: Count = Field(description="Left, px.", examples=[120])
    y: Count = Field(description="Top, px.", examples=[88])
    w: Count = Field(description="Width, px.", examples=[14])
    h: Count = Field(description="Height, px.", examples=[6])
    area_px: Count = Field(description="Number of pixels.", examples=[61])
    area_mm2: Amount = Field(description="Area on the part, mm².", examples=[2.44])
    peak: Score = Field(description="Largest value of the map in it.", examples=[0.97])
    contour: list[Pair] = Field(description="Outer contour, [x, y] px.", examples=[[[120, 88], [133, 93]]])
    nearest: NearestAnswer | None = Field(
        description="The place of a good part that the peak is most like, which it was compared with; null beyond the "
        "50 largest regions, and where no other part was learned."
    )

    @classmethod
    def of(cls, region: Region) -> RegionAnswer:
        """Return the answer about a region; not validated: a part may have many."""
        x, y, w, h = region.bbox_xywh_px
        return cls.model_construct(
            bbox=region.bbox_xywh_px,
            x=x,
            y=y,
            w=w,
            h=h,
            area_px=region.area_px,
            area_mm2=region.area_mm2,
            peak=region.peak_score,
            contour=list(region.contour_xy),
            nearest=NearestAnswer.of(region.nearest),
        )


class InferParams(BaseModel):
    """How the score came about."""

    model_config = ConfigDict(extra="forbid")

    extractor: str = Field(description="Name of the extractor.", examples=["dinov2-vit-s/14"])
    extractor_id: str = Field(
        description="Everything that changes its numbers.",
        examples=["dinov2-vit-s/14|vit_small_patch14_dinov2.lvd142m|layers=9,11|input=384|resize=aspect"],
    )
    precision: str = Field(description="What it multiplies in.", examples=["bf16"])
    coreset_rate: Share = Field(description="Share asked for at the fit.", examples=[0.02])
    k: Count = Field(description="Neighbours that a distance is the mean of.", examples=[1])
    p_score: Percent = Field(description="Percentile of the map that is the score.", examples=[99.0])
    blur_sigma: Amount = Field(description="Blur of the map, px.", examples=[1.0])
    mm_per_px: Size = Field(description="The ROI's scale.", examples=[0.2])
    score_percentile: Percent = Field(description="The same as p_score.", examples=[99.0])
    score_mode: ScoreMode = Field(description="Which of `scores` is the score.", examples=["percentile"])
    scores: dict[ScoreMode, Score] = Field(
        description="All statistics of the map.",
        examples=[{"percentile": 0.47, "top_mean": 0.52, "max": 0.61, "area": 0.58}],
    )
    measured_score: Score = Field(description="The score before an image that is none raises it.", examples=[0.47])
    scoring: Literal["new", "leave_one_out", "own_image_only"] = Field(
        description="`leave_one_out`: the image is in the memory and was scored without its own part. "
        "`own_image_only`: it is the only part there is, and its score says nothing.",
        examples=["new"],
    )
    area_mm2_thr: Amount = Field(description="Smaller regions were dropped, mm².", examples=[1.0])
    heatmap_scale: Score = Field(description="What 255 stands for in the heat map.", examples=[1.12])
    cell_mm: Size = Field(description="Edge of one patch cell, mm.", examples=[2.84])
    calibration_stale: Stale
    shape: dict[str, Any] | None = Field(
        description="The shape of this call.", examples=[{"kind": "circle", "cx": 192.0, "cy": 192.0, "r": 180.0}]
    )
    learned_shape: dict[str, Any] | None = Field(description="The shape that the ROI was fitted with.", examples=[None])
    n_ok: Count = Field(description="Images in the memory.", examples=[30])
    memory: Literal["global", "local"] = Field(
        description="`local`: patches were compared by position, because the ROI is aligned; `global`: with the "
        "coreset alone.",
        examples=["local"],
    )
    memory_checksum: str = Field(description="The memory that was used.", examples=["9287c49a9e0d8c57…"])
    image_digest: str = Field(description="SHA-256 of the decoded pixels.", examples=["1f3c5e7a9b2d4f61…"])


class InferAnswer(ModelReply):
    """What was found on one image."""

    score: Score = Field(description="Larger is more anomalous.", examples=[0.47])
    threshold: Score | None = Field(
        description="The one that was used: that of the inspected shape. null: not calibrated.", examples=[0.56]
    )
    decision: Literal["ok", "ng"] | None = Field(None, description="`ng` if score > threshold.", examples=["ok"])
    reject_reason: Literal["defect", "image"] | None = Field(
        None,
        description="Why it is `ng`: a `defect`, or because the `image` is none of this ROI; then `score` is raised "
        "above the threshold, and `params.measured_score` is the measured one.",
        examples=[None],
    )
    image_check: ImageCheckAnswer | None = Field(None, description="null where images are not checked.")
    heatmap_png_base64: str | None = Field(
        description="8-bit grey PNG of the image's size: 0 = distance 0 or outside, 128 = threshold, 255 = twice it.",
        examples=["iVBORw0KGgo…"],
    )
    heatmap_path: str | None = Field(
        None, description="For heatmap=path: the file, below the models folder.", examples=[None]
    )
    regions: list[RegionAnswer] = Field(
        description="Largest first; empty when not calibrated. In the modes `area` and `max` `ok` has none, `ng` at "
        "least one."
    )
    warnings: list[str] = Field(
        description="What is strange about the image; where regions and decision contradict each other, and what would "
        "resolve it.",
        examples=[[]],
    )
    token_shape: Pair = Field(description="Rows and columns of the patch grid.", examples=[[27, 27]])
    params: InferParams = Field(description="How the score came about.")
    timings_ms: dict[str, Amount] = Field(
        description="Milliseconds: decode, queue, extract, search, post, image_check, encode, total.",
        examples=[{"total": 161.2}],
    )
