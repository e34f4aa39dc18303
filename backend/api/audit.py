"""The decisions that were given, looked up."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from unicodedata import normalize

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field

from backend.api.dependencies import AuditOf, SettingsOf
from backend.api.fields import MEDIA_TYPES, PNG_FILE, Amount, Count, ModelReply, Reply, Score, Serial
from backend.api.infer_schemas import RegionAnswer
from backend.api.own_threads import on_readers_threads
from backend.api.routing import Route
from backend.artifacts.model_key import MAX_ID_CHARS
from backend.imaging.image_codec import decode_image, encode_png, image_suffix
from backend.scoring.inspection import Decision
from backend.scoring.overlay import overlay
from backend.scoring.regions import Region
from backend.services.audit import Source
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["audit"], route_class=Route)

_TIME = "ISO 8601 with a time zone."
_Id = Annotated[
    str | None,
    Field(max_length=MAX_ID_CHARS, description="Only these.", examples=["inspection-1"]),
    AfterValidator(lambda an_id: an_id and normalize("NFC", an_id)),  # as ids are kept
]
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
    serial: Serial = None
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
    source: Source = Field(description="The call; `trial`: /infer with trial=true.", examples=["infer"])
    caller: str | None = Field(description="Role of the API key; null where none is needed.", examples=["inspect"])
    serial: str | None = Field(description="What the client called the part.", examples=["SN-2026-000417"])
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
@on_readers_threads
def find_decisions(request: Request, audit: AuditOf, query: Annotated[AuditQuery, Query()]) -> AuditAnswer:
    """Tell why a part was rejected in March: score, threshold, memory and calibration as they were then."""
    wanted = query.model_dump()
    wanted["serial"] = query.serial or None
    wanted["recipe_id"] = query.recipe_id and query.recipe_id.lower()
    found = audit.find(**wanted)
    return AuditAnswer(
        entries=[AuditEntry.model_validate(row) for row in found],
        next_before_id=found[-1]["id"] if len(found) == query.limit else None,
        request_id=request.state.request_id,
    )


_EntryId = Annotated[int, Path(ge=1, le=2**63 - 1, description="`id` of the decision.", examples=[4711])]
_View = Annotated[
    Literal["image", "heatmap", "overlay"],
    Path(description="The file as it was sent, the heat map, or both with the regions drawn.", examples=["overlay"]),
]
_PICTURES = {name: {"schema": PNG_FILE} for name in (*MEDIA_TYPES.values(), "application/octet-stream")}


class KeptRegions(Reply):
    """Where the part was not normal."""

    id: Count = Field(description="Number of the decision.", examples=[4711])
    heatmap_scale: Score = Field(description="What 255 stands for in the heat map.", examples=[1.12])
    shape: dict[str, Any] | None = Field(description="The shape that was inspected.", examples=[None])
    regions: list[RegionAnswer] = Field(description="As answered.")


@router.get("/audit/{entry_id}/regions", summary="The regions of a decision", **ADMIN)
def find_regions(request: Request, audit: AuditOf, entry_id: _EntryId) -> KeptRegions:
    """Return the regions of an inspection whose image is still kept."""
    facts = audit.kept_image(entry_id).facts
    return KeptRegions(
        id=entry_id,
        heatmap_scale=facts["heatmap_scale"],
        shape=facts["shape"],
        regions=[RegionAnswer.of(Region.from_fields(fields)) for fields in facts["regions"]],
        request_id=request.state.request_id,
    )


@router.get(
    "/audit/{entry_id}/{view}",
    summary="The image of a decision",
    response_class=Response,
    responses={200: {"content": _PICTURES, "description": "The picture."}},
    **ADMIN,
)
def find_image(settings: SettingsOf, audit: AuditOf, entry_id: _EntryId, view: _View) -> Response:
    """Return what is kept of a decision's image: the last of each ROI and decision are, up to a limit."""
    kept = audit.kept_image(entry_id)
    if view == "image":
        return Response(kept.image, media_type=MEDIA_TYPES[image_suffix(kept.image)])
    if view == "heatmap":
        return Response(kept.heatmap_png, media_type="image/png")
    image, heatmap = (decode_image(data, max_pixels=settings.max_pixels) for data in (kept.image, kept.heatmap_png))
    regions = [Region.from_fields(fields) for fields in kept.facts["regions"]]
    everywhere = np.ones(image.shape[:2], dtype=np.bool_)
    return Response(encode_png(overlay(image, heatmap[:, :, 0], everywhere, regions)), media_type="image/png")
