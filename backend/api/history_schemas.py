"""The questions and answers about the history: decisions, trends, and the overview of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, BaseModel, Field

from backend.api.fields import Amount, Box, Count, ModelReply, Reply, Score, Share, Stale
from backend.api.infer_schemas import Measure
from backend.calib import ScoreMode
from backend.history.calendar import Bucket, iso
from backend.history.drift import Drift, DriftState
from backend.history.reading import BucketOfTime
from backend.history.record import MarkKind
from backend.history.sketch import IMAGE_SERIES
from backend.scoring.image_check import ImageVerdict
from backend.scoring.inspection import Decision, RejectReason

_TIME = "ISO 8601 with a time zone."

Since = Annotated[AwareDatetime | None, Field(description=f"Not before. {_TIME}", examples=["2026-03-01T00:00:00Z"])]
Until = Annotated[AwareDatetime | None, Field(description=f"Before. {_TIME}", examples=["2026-04-01T00:00:00+02:00"])]
Ratio = Annotated[
    Score | None,
    Field(description="score ÷ threshold: above 1 is `ng`; null without a calibration.", examples=[0.84]),
]


class DriftAnswer(BaseModel):
    """Whether the ratio of score and threshold has moved since the last fit, calibration or activation."""

    state: DriftState = Field(
        description="`none`, `moved`, or `too_few` decisions to say: 20 batches of 10 at least.", examples=["none"]
    )
    since: datetime | None = Field(description="Begin of the first batch after the move.", examples=[None])
    before_median: Score | None = Field(description="Median ratio before it; null: too few.", examples=[0.71])
    after_median: Score | None = Field(description="Median ratio since.", examples=[0.71])
    p_value: Share | None = Field(description="Of the most likely change; `moved` is below 0.001.", examples=[0.4])
    n_batches: Count = Field(description="Batches of decisions that were compared.", examples=[120])
    method: Literal["pettitt_batched"] = Field("pettitt_batched", description="The test.", examples=["pettitt_batched"])

    @classmethod
    def of(cls, drift: Drift) -> DriftAnswer:
        """Return the answer about a drift."""
        return cls(**{**vars(drift), "since": None if drift.since is None else iso(drift.since)})


class StripEntry(BaseModel):
    """One of the last decisions."""

    at: datetime = Field(description="When.", examples=["2026-03-14T09:26:53.589793Z"])
    decision: Decision | None = Field(description="null without a calibration.", examples=["ok"])
    score: Score = Field(description="As answered.", examples=[0.47])
    ratio: Ratio
    reject_reason: RejectReason | None = Field(description="As answered.", examples=[None])


class OverviewEntry(BaseModel):
    """One model, in short."""

    role_id: str = Field(description="Role of the camera view.", examples=["Inspection"])
    roi_id: str = Field(description="Region of interest.", examples=["inspection-1"])
    model_key: str = Field(description="Which model of the ROI; mostly the roi_id.", examples=["inspection-1"])
    fitted: bool = Field(description="There is a memory.", examples=[True])
    calibrated: bool = Field(description="There is a calibration of this memory.", examples=[True])
    calibration_stale: Stale
    fault: str | None = Field(description="What is wrong with what is stored; null: nothing.", examples=[None])
    extractor: str | None = Field(description="The extractor of the memory.", examples=["filter-bank"])
    n_ok: Count = Field(description="Images in the memory.", examples=[30])
    n_ng: Count = Field(description="Bad scores that the calibration rests on.", examples=[4])
    fitted_at: datetime | None = Field(description="When the memory was written.", examples=["2026-03-02T08:00:00Z"])
    calibrated_at: datetime | None = Field(
        description="When the calibration was written; a fit renews it.", examples=["2026-03-02T08:00:00Z"]
    )
    threshold: Score | None = Field(description="null without a calibration.", examples=[0.56])
    score_mode: ScoreMode | None = Field(description="null without a calibration.", examples=["area"])
    last: list[StripEntry] = Field(description="Up to 50 of the last decisions, newest last.")
    n_decisions_24h: Count = Field(description="Decisions of the last 24 hours.", examples=[1420])
    ng_rate_24h: Share | None = Field(description="Share of `ng` of them; null: none.", examples=[0.021])
    drift: DriftAnswer


class OverviewAnswer(Reply):
    """The models of a recipe, by their ids. Images that a memory has learned count nowhere in it."""

    recipe_id: str = Field(description="The recipe.", examples=["default"])
    rois: list[OverviewEntry] = Field(description="One per model.")


class DecisionsQuery(BaseModel):
    """Which decisions of a ROI are asked for."""

    since: Since = Field(None, alias="from")
    until: Until = Field(None, alias="to")
    decision: Decision | None = Field(None, description="Only these decisions.", examples=["ng"])
    limit: int = Field(100, ge=1, le=1000, description="Most decisions in one answer.", examples=[100])
    before_id: int | None = Field(
        None, ge=1, le=2**53 - 1, description="Only older ones than this; `next_before_id`.", examples=[42]
    )


class ImageCheckInShort(BaseModel):
    """What was farthest from the good parts' images."""

    verdict: ImageVerdict = Field(description="As answered.", examples=["ok"])
    statistic: str = Field(description="The statistic with the largest distance.", examples=["level"])
    distance: Measure = Field(description="How far outside its range; negative below it.", examples=[0.0])


class WorstRegion(BaseModel):
    """The region with the highest peak."""

    bbox: Box = Field(description="x, y, w, h, px.", examples=[[120, 88, 14, 6]])
    area_mm2: Amount = Field(description="Area on the part, mm².", examples=[2.44])
    max: Score = Field(description="Largest value of the map in it.", examples=[0.97])


class DecisionAnswer(BaseModel):
    """One decision, without its images."""

    id: Count = Field(description="Number of the decision; a later one has a larger one.", examples=[4711])
    at: datetime = Field(description="When it was given.", examples=["2026-03-14T09:26:53.589793Z"])
    decision: Decision | None = Field(description="null without a calibration.", examples=["ng"])
    score: Score = Field(description="As answered.", examples=[0.61])
    threshold: Score | None = Field(description="As answered; null without a calibration.", examples=[0.55])
    ratio: Ratio
    score_mode: ScoreMode = Field(description="Statistic of the map that was the score.", examples=["area"])
    reject_reason: RejectReason | None = Field(description="As answered.", examples=["defect"])
    image_check: ImageCheckInShort | None = Field(description="null where images are not checked.")
    n_regions: Count = Field(description="Regions that were found.", examples=[1])
    worst_region: WorstRegion | None = Field(description="null without regions.")
    serial: str | None = Field(description="What the client called the part.", examples=["SN-2026-000417"])
    filename: str = Field(description="File name as sent.", examples=["part.png"])
    memory_checksum: str = Field(description="The memory that the image was compared with.", examples=["9a3f…"])
    learned: bool = Field(
        description="The memory had learned this image: it counts in no trend and no rate.", examples=[False]
    )
    audit_entry_id: Count | None = Field(
        description="The decision's number in the audit, for GET /audit/{entry_id}/image as long as its image is kept "
        "there; null where no audit was kept.",
        examples=[None],
    )

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> DecisionAnswer:
        """Return the answer about a row of the history."""
        check = worst = None
        if row["verdict"] is not None:
            check = {"verdict": row["verdict"], "statistic": row["statistic"], "distance": row["distance"]}
        if row["x"] is not None:
            box = tuple(row[name] for name in "xywh")
            worst = {"bbox": box, "area_mm2": row["area_mm2"], "max": row["peak"]}
        return cls.model_validate(
            {**row, "at": iso(row["at"]), "ratio": ratio_of(row), "image_check": check, "worst_region": worst}
        )


class DecisionsAnswer(ModelReply):
    """Decisions, newest first."""

    decisions: list[DecisionAnswer] = Field(description="The decisions that fit.")
    next_before_id: Count | None = Field(
        description="Send it as before_id for the older ones; null when these were all.", examples=[None]
    )


class StatsQuery(BaseModel):
    """Over which time, and by what, decisions are put together."""

    since: Since = Field(None, alias="from")
    until: Until = Field(None, alias="to")
    bucket: Bucket = Field("day", description="What values are put together over.", examples=["day"])
    shifts: str = Field(
        "06:00,14:00,22:00",
        max_length=200,
        description="When shifts begin, at whole quarters of an hour; for bucket=shift.",
        examples=["06:00,14:00,22:00"],
    )
    tz: str = Field(
        "UTC",
        min_length=1,
        max_length=64,
        description="Time zone of hours, shifts and days.",
        examples=["Europe/Madrid"],
    )


class QuantilesAnswer(BaseModel):
    """Median and 95th percentile, exact to 0.5 % of themselves; null where there is no value."""

    median: Score | None = Field(description="Half of the values are no larger.", examples=[0.42])
    p95: Score | None = Field(description="95 % of the values are no larger.", examples=[0.51])


class BucketAnswer(BaseModel):
    """An hour, a shift or a day."""

    start: datetime = Field(description="When it began, in the time zone.", examples=["2026-03-14T06:00:00+01:00"])
    n: Count = Field(description="Decisions, and scores without a calibration.", examples=[480])
    n_ng: Count = Field(description="Of these `ng`, for whatever reason.", examples=[9])
    n_not_an_image_of_the_part: Count = Field(
        description="Of these for an image that is none of the part; not among the scores.", examples=[0]
    )
    ng_rate: Share = Field(description="n_ng ÷ n.", examples=[0.01875])
    score: QuantilesAnswer = Field(description="Of the scores.")
    ratio: QuantilesAnswer = Field(description="Of score ÷ threshold.")
    image_statistics: dict[str, Measure] = Field(
        description="Medians of the statistics that the image check compares, exact to 2 % of themselves.",
        examples=[{"level": 104.2, "sharpness_fine": 0.31}],
    )

    @classmethod
    def of(cls, bucket: BucketOfTime, zone: ZoneInfo) -> BucketAnswer:
        """Return the answer about a bucket, with its time in a zone."""
        medians, p95s = bucket.sketch.quantiles(0.5), bucket.sketch.quantiles(0.95)
        quantiles = {name: {"median": medians.get(name), "p95": p95s.get(name)} for name in ("score", "ratio")}
        return cls.model_validate(
            {
                "start": datetime.fromtimestamp(bucket.start, zone),
                "n": bucket.n,
                "n_ng": bucket.n_ng,
                "n_not_an_image_of_the_part": bucket.n_foreign,
                "ng_rate": bucket.n_ng / bucket.n,
                **quantiles,
                "image_statistics": {name: medians[name] for name in IMAGE_SERIES if name in medians},
            }
        )


class MarkAnswer(BaseModel):
    """A change of the model."""

    at: datetime = Field(description="When.", examples=["2026-03-02T08:00:00Z"])
    kind: MarkKind = Field(description="What has changed it.", examples=["calibration"])
    memory_checksum: str = Field(description="The memory in force from then on.", examples=["9a3f…"])
    facts: dict[str, Any] = Field(
        description="What else is known of it: `threshold`, `score_mode`, `n_ok`, `n_ng`.",
        examples=[{"threshold": 0.56, "score_mode": "area", "n_ok": 30, "n_ng": 4}],
    )


class StatsAnswer(ModelReply):
    """A model's decisions over time. Images that the memory has learned do not count."""

    buckets: list[BucketAnswer] = Field(description="Oldest first; those without a decision are left out.")
    marks: list[MarkAnswer] = Field(description="Fits, calibrations and activations in this time, oldest first.")
    drift: DriftAnswer = Field(description="As of now, whatever time is asked for.")


def ratio_of(row: Mapping[str, Any]) -> float | None:
    """Return score ÷ threshold of a row of the history."""
    return row["score"] / row["threshold"] if row["threshold"] else None
