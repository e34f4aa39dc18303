"""The decisions that were given, looked up."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import AwareDatetime, BaseModel, Field

from backend.api.dependencies import AuditOf
from backend.api.fields import Amount, Count, ModelReply, Reply, Score
from backend.api.routing import Route
from backend.artifacts.model_key import MAX_ID_CHARS
from backend.scoring.inspection import Decision
from backend.services.audit import Source
from backend.serving.access import INSPECT

router = APIRouter(tags=["audit"], route_class=Route)

_TIME = "ISO 8601 with a time zone."
_Id = Annotated[str | None, Field(max_length=MAX_ID_CHARS, description="Only these.", examples=["inspection-1"])]
_Text = Annotated[str | None, Field(max_length=128, description="Only this one.", examples=["8f0c6d0e6d2e4f0a"])]


class AuditQuery(BaseModel):
    """Which decisions are asked for."""

    role_id: _Id = None
    roi_id: _Id = None
    recipe_id: _Id = None
    since: AwareDatetime | None = Field(
        None, alias="from", description=f"Not before. {_TIME}", examples=["2026-03-01T00:00:00Z"]
    )
    until: AwareDatetime | None = Field(
        None, alias="to", description=f"Before. {_TIME}", examples=["2026-04-01T00:00:00+02:00"]
    )
    decision: Decision | None = Field(None, description="Only these decisions.", examples=["ng"])
    image_digest: _Text = None
    request_id: _Text = None
    limit: int = Field(100, ge=1, le=1000, description="Most decisions in one answer.", examples=[100])
    before_id: int | None = Field(
        None, ge=1, le=2**63 - 1, description="Only older ones than this; `next_before_id`.", examples=[42]
    )


class AuditEntry(ModelReply):
    """One decision as it was given, and what it followed from."""

    id: Count = Field(description="Number of the decision; a later one has a larger one.", examples=[4711])
    time_utc: datetime = Field(description="When it was given.", examples=["2026-03-14T09:26:53.589793Z"])
    source: Source = Field(description="The call.", examples=["infer"])
    caller: str | None = Field(description="Role of the API key; null where none is needed.", examples=["inspect"])
    image_name: str = Field(description="File name as sent.", examples=["part.png"])
    image_digest: str = Field(description="SHA-256 of the pixels.", examples=["1f3c5e7a9b2d…"])
    score: Score = Field(description="As answered.", examples=[0.61])
    threshold: Score | None = Field(description="As answered; null without a calibration.", examples=[0.55])
    decision: Decision | None = Field(description="As answered; null without a calibration.", examples=["ng"])
    n_regions: Count = Field(description="Regions that were found.", examples=[1])
    area_mm2: Amount = Field(description="Area of all regions, mm².", examples=[3.2])
    memory_checksum: str = Field(description="The memory that the image was compared with.", examples=["9a3f…"])
    extractor_id: str = Field(
        description="The extractor, with everything that changes its numbers.", examples=["filter-bank|384"]
    )
    mm_per_px: float = Field(gt=0, description="Millimetres per pixel.", examples=[0.2])
    service_version: str = Field(description="Version of the service.", examples=["0.1.0"])
    params: dict[str, Any] = Field(
        description="`params` as answered, and in `calibration` what the threshold rested on.",
        examples=[{"score_mode": "percentile", "score_percentile": 99, "calibration": {"n_ok": 30, "n_ng": 0}}],
    )


class AuditAnswer(Reply):
    """Decisions, newest first."""

    entries: list[AuditEntry] = Field(description="The decisions that fit.")
    next_before_id: Count | None = Field(
        description="Send it as before_id for the older ones; null when these were all.", examples=[None]
    )


@router.get("/audit", summary="Decisions that were given", **INSPECT)
def find_decisions(request: Request, audit: AuditOf, query: Annotated[AuditQuery, Query()]) -> AuditAnswer:
    """Tell why a part was rejected in March: score, threshold, memory and calibration as they were then."""
    wanted = query.model_dump()
    wanted["recipe_id"] = query.recipe_id and query.recipe_id.lower()
    found = audit.find(**wanted)
    return AuditAnswer(
        entries=[AuditEntry.model_validate(row) for row in found],
        next_before_id=found[-1]["id"] if len(found) == query.limit else None,
        request_id=request.state.request_id,
    )
