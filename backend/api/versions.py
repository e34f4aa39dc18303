"""The versions of a ROI: what was in force, the way back, and two of them on the same images."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from backend.api.dependencies import KeyOfQuery, NowOrLater, ServiceOf, identity, model_key_of
from backend.api.fields import Answer, Count, ModelBody, Reason, Score
from backend.api.own_threads import on_readers_threads, on_writers_threads
from backend.api.routing import Route
from backend.api.store_schemas import JobStarted
from backend.artifacts.stored_image import Label
from backend.artifacts.stored_version import StoredVersion
from backend.calib import ScoreMode
from backend.memory_bank.coreset import Progress
from backend.services.version_comparison import Judged, rule_of
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
        calibration = listed.calibration
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
            calibrated=calibration is not None,
            threshold=None if calibration is None else calibration.threshold,
            score_mode=None if calibration is None else calibration.score_mode,
            n_ok=None if calibration is None else calibration.n_ok,
            n_ng=None if calibration is None else calibration.n_ng,
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


class CompareBody(ModelBody):
    """Which versions to compare."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"role_id": "Inspection", "roi_id": "inspection-1", "a": 3, "b": 7}]}
    )

    a: int = Field(strict=True, ge=1, le=MAX_VERSION, description="As GET /versions lists it.", examples=[3])
    b: int | None = Field(
        None, strict=True, ge=1, le=MAX_VERSION, description="Another one; left out: the one in force.", examples=[None]
    )


class ComparedVersion(BaseModel):
    """One of the versions that were compared, and how it does on the stored images."""

    version: Count = Field(description="Its number.", examples=[3])
    memory_checksum: str = Field(description="`checksum` of its memory.", examples=["9287c49a9e0d8c57…"])
    threshold: Score | None = Field(description="null: not calibrated.", examples=[0.56])
    score_mode: ScoreMode = Field(description="What its scores are.", examples=["area"])
    ok_rejected: Count = Field(description="Good images that it would reject.", examples=[1])
    ng_caught: Count = Field(description="Bad images that it would reject.", examples=[4])


class JudgedAnswer(BaseModel):
    """What a version makes of an image."""

    score: Score = Field(description="The image score.", examples=[0.47])
    threshold: Score | None = Field(description="null: not calibrated.", examples=[0.56])
    decision: Literal["ok", "ng"] | None = Field(description="null: not calibrated.", examples=["ok"])
    scoring: Literal["new", "leave_one_out"] = Field(
        description="`leave_one_out`: it has learned the image, and scores it without its own part.", examples=["new"]
    )

    @staticmethod
    def of(judged: Judged | None) -> JudgedAnswer | None:
        """Return what an answer says of it."""
        if judged is None:
            return None
        return JudgedAnswer(
            score=judged.score,
            threshold=judged.threshold,
            decision=judged.decision,
            scoring="leave_one_out" if judged.learned else "new",
        )


class ComparedImageAnswer(BaseModel):
    """A stored image under both versions."""

    label: Label = Field(description="Class.", examples=["ok"])
    filename: str = Field(description="As listed.", examples=["roi-1f3c5e7a9b2d.png"])
    image_digest: str = Field(description="SHA-256 of the decoded pixels.", examples=["1f3c5e7a9b2d4f61…"])
    a: JudgedAnswer | None = Field(description="Under `a`; null with an error.")
    b: JudgedAnswer | None = Field(description="Under `b`; null with an error.")
    changed: bool = Field(description="One of them rejects it, and the other does not.", examples=[False])
    error: str | None = Field(description="Why it could not be scored under one of them.", examples=[None])


class CompareAnswer(Answer):
    """Two versions on the same stored images."""

    a: ComparedVersion = Field(description="The first one.")
    b: ComparedVersion = Field(description="The second one.")
    n_images: Count = Field(description="Stored images.", examples=[34])
    n_changed: Count = Field(description="Those that one version rejects and the other does not.", examples=[2])
    n_errors: Count = Field(description="Those that could not be scored.", examples=[0])
    images: list[ComparedImageAnswer] = Field(description="Each of them; good ones first.")


@router.post(
    "/versions/compare",
    summary="Compare two versions on the stored images",
    response_model=CompareAnswer,
    responses={202: {"model": JobStarted}},
    **INSPECT,
)
@on_writers_threads
def compare_versions(
    request: Request, service: ServiceOf, now_or_later: NowOrLater, body: CompareBody
) -> CompareAnswer | JSONResponse:
    """Score the stored good and bad images under two versions, and say which of them change sides. Nothing is stored.

    An image that a version has learned is scored without its own part by it.
    """
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    answer_fields = identity(request, key)

    def compare(progress: Progress) -> CompareAnswer:
        found = service.comparer.compare(key, body.a, body.b, progress=progress)
        return CompareAnswer(
            **answer_fields,
            a=_compared_version(found.a, [(each.image.label, each.a) for each in found.images]),
            b=_compared_version(found.b, [(each.image.label, each.b) for each in found.images]),
            n_images=len(found.images),
            n_changed=sum(each.changed for each in found.images),
            n_errors=sum(each.error is not None for each in found.images),
            images=[
                ComparedImageAnswer(
                    label=each.image.label,
                    filename=each.image.file_name,
                    image_digest=each.image.digest,
                    a=JudgedAnswer.of(each.a),
                    b=JudgedAnswer.of(each.b),
                    changed=each.changed,
                    error=each.error,
                )
                for each in found.images
            ],
        )

    return now_or_later("versions_compare", compare)


def _compared_version(stored: StoredVersion, judged: list[tuple[Label, Judged | None]]) -> ComparedVersion:
    calibration = stored.model.calibration
    rejected = Counter(label for label, each in judged if each is not None and each.decision == "ng")
    return ComparedVersion(
        version=stored.version.number,
        memory_checksum=stored.bank.checksum,
        threshold=None if calibration is None else calibration.threshold,
        score_mode=rule_of(stored).mode,
        ok_rejected=rejected["ok"],
        ng_caught=rejected["ng"],
    )
