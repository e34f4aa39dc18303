"""The versions of a ROI: what was in force, and the way back."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from backend.api.dependencies import KeyOfQuery, ServiceOf, identity, model_key_of
from backend.api.fields import Answer, Count, ModelBody, Reason, Score
from backend.api.own_threads import on_readers_threads, on_writers_threads
from backend.api.routing import Route
from backend.calib import ScoreMode
from backend.services.versions import ListedVersion
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["models"], route_class=Route)

MAX_VERSION = 999_999_999


class VersionAnswer(BaseModel):
    """A memory with its calibration that is in force, or was."""

    version: Count = Field(description="From 1 on, in the order of coming into force.", examples=[7])
    kind: Literal["fit", "refit", "calibration", "activation"] = Field(
        description="What brought it into force.", examples=["fit"]
    )
    at: str = Field(description="When, ISO 8601 in UTC.", examples=["2026-03-11T09:26:53.589793Z"])
    in_force: bool = Field(description="Inspections are judged by it.", examples=[True])
    reason: str | None = Field(description="What whoever made it wrote.", examples=["New lamp since Monday"])
    activates: Count | None = Field(
        description="Of an activation: the version whose memory and calibration it brought back.", examples=[None]
    )
    memory_checksum: str = Field(description="`checksum` of its memory.", examples=["9287c49a9e0d8c57…"])
    extractor: str = Field(
        description="Id of the extractor that made its memory.", examples=["filter-bank|3|384|aspect"]
    )
    n_ok_total: Count = Field(description="Images that it has learned.", examples=[30])
    n_parts: Count | None = Field(description="Different parts among them; null where not known.", examples=[30])
    calibrated: bool = Field(description="It has a calibration of its memory.", examples=[True])
    threshold: Score | None = Field(description="null: not calibrated.", examples=[0.56])
    score_mode: ScoreMode | None = Field(description="Of its calibration.", examples=["area"])
    n_ok: Count | None = Field(description="OK scores of its calibration.", examples=[30])
    n_ng: Count | None = Field(description="NG scores of its calibration.", examples=[2])
    note: str | None = Field(
        description="Why it cannot be activated; null where nothing stands against it.", examples=[None]
    )

    @staticmethod
    def of(listed: ListedVersion) -> VersionAnswer:
        """Return what an answer says of a version."""
        version = listed.version
        calibration: dict[str, Any] = dict(version.own_calibration or {})
        return VersionAnswer(
            version=version.number,
            kind=version.kind,
            at=version.at,
            in_force=listed.in_force,
            reason=version.reason,
            activates=version.activates,
            memory_checksum=version.memory.checksum,
            extractor=version.memory.extractor_id,
            n_ok_total=version.memory.n_images,
            n_parts=version.memory.n_parts,
            calibrated=bool(calibration),
            threshold=calibration.get("threshold"),
            score_mode=calibration.get("score_mode"),
            n_ok=calibration.get("n_ok"),
            n_ng=calibration.get("n_ng"),
            note=listed.note,
        )


class VersionsAnswer(Answer):
    """What was in force at a ROI."""

    keep_versions: Count = Field(description="Most that are kept beside the one in force.", examples=[10])
    versions: list[VersionAnswer] = Field(description="Newest first; none where the ROI was never fitted.")


class ActivateBody(ModelBody):
    """Which version to bring back."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"role_id": "Inspection", "roi_id": "inspection-1", "version": 3}]}
    )

    version: int = Field(strict=True, ge=1, le=MAX_VERSION, description="As GET /versions lists it.", examples=[3])
    reason: Reason = None


class ActivateAnswer(Answer):
    """What is in force now."""

    version: Count = Field(description="The new version, which holds what the old one held.", examples=[8])
    activates: Count = Field(description="The version that was brought back.", examples=[3])
    changed: bool = Field(description="false: it was in force already, and nothing was changed.", examples=[True])
    memory_checksum: str = Field(description="`checksum` of its memory.", examples=["9287c49a9e0d8c57…"])
    calibrated: bool = Field(description="It has a calibration of its memory.", examples=[True])
    threshold: Score | None = Field(description="The threshold now in force.", examples=[0.56])
    score_mode: ScoreMode | None = Field(description="Of its calibration.", examples=["area"])


@router.get("/versions", summary="What was in force at a ROI", **INSPECT)
@on_readers_threads
def list_versions(request: Request, service: ServiceOf, key: KeyOfQuery) -> VersionsAnswer:
    """List every fit and calibration that was in force, as far as they are kept."""
    return VersionsAnswer(
        **identity(request, key),
        keep_versions=service.store.keep_versions,
        versions=[VersionAnswer.of(each) for each in service.versions.listed(key)],
    )


@router.post("/versions/activate", summary="Bring a version back", **ADMIN)
@on_writers_threads
def activate_version(request: Request, service: ServiceOf, body: ActivateBody) -> ActivateAnswer:
    """Bring a memory and its calibration back in one switch. What was in force is kept: it can be brought back, too."""
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    found = service.versions.activate(key, body.version, reason=body.reason or None)
    calibration = found.stored.model.calibration
    return ActivateAnswer(
        **identity(request, key),
        version=found.in_force.number,
        activates=body.version,
        changed=found.changed,
        memory_checksum=found.stored.bank.checksum,
        calibrated=calibration is not None,
        threshold=None if calibration is None else calibration.threshold,
        score_mode=None if calibration is None else calibration.score_mode,
        warnings=list(found.warnings),
    )
