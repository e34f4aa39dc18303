"""The requests and answers of the HTTP interface.

Geometry is in pixels of the uploaded image. Scores and thresholds are distances in [0, 2]: larger is more anomalous.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.api.fields import (
    MM_PER_PX_TEXT,
    Amount,
    Answer,
    Count,
    MemoryFacts,
    MmPerPx,
    Percent,
    Score,
    Scores,
    ScoringBody,
    Share,
    Size,
)
from backend.calib import MARGIN_RANGE, Method, ScoreMode


class ErrorBody(BaseModel):
    """The one body of every error."""

    error: str = Field(description="One sentence that says what to do.", examples=["mm_per_px must be greater than 0."])
    code: str = Field(description="Stable snake_case code.", examples=["invalid_input"])
    details: dict[str, Any] | None = Field(
        None, description="Machine-readable facts.", examples=[{"field": "mm_per_px"}]
    )
    request_id: str = Field(description="Find it in the log.", examples=["8f0c6d0e6d2e4f0a"])
    recipe_id: str = Field(description="The recipe of the call.", examples=["default"])


class ScoreSummary(BaseModel):
    """Leave-one-image-out scores of all learned images, in the score mode in force."""

    n: Count = Field(description="Images that were scored.", examples=[30])
    p50: Score = Field(description="Median.", examples=[0.41])
    p95: Score = Field(description="95th percentile.", examples=[0.52])
    p99: Score = Field(description="99th percentile.", examples=[0.55])
    max: Score = Field(description="Largest.", examples=[0.56])


class SuspectAnswer(BaseModel):
    """A good image that stands out among the others, so that it may show a bad part."""

    name: str = Field(description="Its stored file name.", examples=["roi-1f3c5e7a9b2d.png"])
    digest: str = Field(description="SHA-256 of the decoded pixels.", examples=["1f3c5e7a9b2d4f61…"])
    score: Score = Field(
        description="Its score without its own part, in the score mode of `ok_scores`.", examples=[0.97]
    )
    times_median: Score = Field(
        description="How far it stands out: the geometric mean of its `top_mean` (highest 1 %) and `area` scores ÷ the "
        "median of that of the other parts.",
        examples=[2.4],
    )


class FitAnswer(MemoryFacts, Answer):
    """What a ROI has learned."""

    n_new: Count = Field(description="Images of this call that the memory did not know.", examples=[30])
    n_duplicates: Count = Field(
        description="Images of this call that repeat a known one; not learned twice.", examples=[0]
    )
    coreset_rate_requested: Share = Field(description="Share asked for.", examples=[0.02])
    coreset_rate_applied: Share = Field(description="coreset_size ÷ n_embeddings.", examples=[0.02003])
    extractor: str = Field(description="Name of the extractor.", examples=["dinov2-vit-s/14"])
    ok_scores: ScoreSummary | None = Field(description="null for fewer than two parts.")
    suggested_threshold: Score | None = Field(
        description="What `ok_scores` alone call for, in their score mode; null for fewer than two parts.",
        examples=[0.56],
    )
    suspects: list[SuspectAnswer] = Field(
        description="Good images whose own score stands out among the others, the farthest first. Look at them: a "
        "defect that is learned as good is never found again.",
    )
    threshold_without_suspects: Score | None = Field(
        description="What the threshold would be by the scores of all other images; null without suspects.",
        examples=[None],
    )
    near_identical: list[list[str]] = Field(
        description="Groups of images, by stored file name, that are near-identical (frames of a burst, other "
        "encodings) and count as one part each in `n_parts`, thresholds and promises, unless `part_id` said otherwise.",
        examples=[[]],
    )
    calibration: Literal["none", "kept", "renewed", "stale"] = Field(
        description="What became of the ROI's calibration: there was `none`; `kept`: the memory is the same; `renewed` "
        "with the same settings; `stale`: calibrate again, inspections have no decision until then.",
        examples=["none"],
    )
    threshold: Score | None = Field(description="The threshold now in force.", examples=[0.56])
    warnings: list[str] = Field(description="What the engineer should know.", examples=[[]])
    timings_ms: dict[str, Amount] = Field(description="Milliseconds by stage.", examples=[{"total": 6210.4}])


_SHORT: dict[str, Any] = {"role_id": "Inspection", "roi_id": "inspection-1", "mm_per_px": 0.2}
_SCORES = {"ok_scores": [0.41, 0.44, 0.39], "ng_scores": [0.92], "area_mm2_thr": 1.0, "score_percentile": 99}


class CalibrateBody(ScoringBody):
    """What to calibrate with."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SHORT, _SHORT | _SCORES]})

    mm_per_px: MmPerPx | None = Field(None, description=MM_PER_PX_TEXT, examples=[0.2])
    ok_scores: Scores | None = Field(
        None, description="Scores of good images; left out: the stored leave-one-image-out scores.", examples=[None]
    )
    ng_scores: Scores | None = Field(
        None,
        description="Scores of bad images. Left out, and without ok_scores: those of the stored bad images.",
        examples=[[0.92]],
    )
    add_ok_scores: Scores = Field(
        [],
        description="With `dry_run`, and without `ok_scores` and `ng_scores`: scores of further good parts, to see "
        "what they would do to the threshold if they were stored. A fit with them may lower the scores of the others.",
        examples=[[]],
    )
    add_ng_scores: Scores = Field([], description="The same of bad parts.", examples=[[]])


class CalibrationFacts(BaseModel):
    """A ROI's threshold, and what it is worth."""

    threshold: Score = Field(description="Scores above it are ng.", examples=[0.56])
    p99_ok: Score = Field(description="99th percentile of the OK scores (an order statistic).", examples=[0.56])
    p5_ng: Score | None = Field(description="5th percentile of the NG scores; null without any.", examples=[None])
    ok_mean: Score = Field(description="Mean of the OK scores.", examples=[0.41])
    ng_mean: Score = Field(description="Mean of the NG scores; 0 without any.", examples=[0.0])
    mm_per_px: Size = Field(description="The ROI's scale.", examples=[0.2])
    area_mm2_thr: Amount = Field(
        description="Area that counts, mm²: smaller regions are dropped, and with `area` it makes the score.",
        examples=[1.0],
    )
    score_percentile: Percent = Field(description="Percentile of the map that is the score.", examples=[99.0])
    score_mode: ScoreMode = Field(description="Statistic of the map that is the score.", examples=["percentile"])
    blur_sigma: Amount = Field(description="Blur of the map, px; that of the fit.", examples=[1.0])
    ok_percentile: Percent = Field(description="Percentile of the OK scores that was asked for.", examples=[99.0])
    margin: float = Field(
        description="Factor on what the OK scores call for.",
        examples=[1.0],
        json_schema_extra={"minimum": MARGIN_RANGE[0], "maximum": MARGIN_RANGE[1]},
    )
    method: Method = Field(description="How it was set; `manual`: by hand.", examples=["ok_percentile"])
    ok_scores_from: Literal["stored", "request", "dataset"] = Field(
        description="Where the OK scores came from.", examples=["stored"]
    )
    ng_scores_from: Literal["stored", "request", "dataset"] | None = Field(
        description="Where the NG scores came from; null without any.", examples=[None]
    )
    n_ok: Count = Field(description="Independent OK scores (parts).", examples=[30])
    ok_rejected: Count = Field(description="OK scores above the threshold: false alarms.", examples=[0])
    n_ng: Count = Field(description="NG scores.", examples=[0])
    ng_caught: Count = Field(description="NG scores above the threshold.", examples=[0])
    expected_false_alarm_rate: Share = Field(
        description="Share of good parts above the threshold, on average: 1/(n+1).", examples=[0.032]
    )
    false_alarm_rate_upper_95: Share = Field(
        description="The share that is not exceeded, with 95 % confidence.", examples=[0.095]
    )
    memory_checksum: str = Field(description="The memory that it belongs to.", examples=["9287c49a9e0d8c57…"])
    warnings: list[str] = Field(description="What the engineer should know.", examples=[[]])


class CalibrateAnswer(Answer, CalibrationFacts):
    """A ROI's new threshold, and what it is worth."""

    dry_run: bool = Field(False, description="Nothing was stored.", examples=[False])
