"""Learn, calibrate, inspect."""

from __future__ import annotations

import base64
import re
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Header, Request, Response
from fastapi.responses import JSONResponse

from backend.api.dependencies import (
    AuditOf,
    HistoryOf,
    KeyOfForm,
    MetricsOf,
    NowOrLater,
    ServiceOf,
    SettingsOf,
    check_uploads,
    identity,
    model_key_of,
    shape_of,
)
from backend.api.fields import (
    PNG_FILE,
    ImageFile,
    MemoryFacts,
    MmPerPx,
    OverlayPx,
    PartId,
    Reason,
    Serial,
    ShapeText,
    Trial,
    TriedVersion,
)
from backend.api.infer_schemas import ImageCheckAnswer, InferAnswer, InferParams, RegionAnswer
from backend.api.own_threads import on_writers_threads
from backend.api.routing import Route, has_no_effect
from backend.api.schemas import CalibrateAnswer, CalibrateBody, FitAnswer, ScoreSummary, SuspectAnswer
from backend.api.store_schemas import JobStarted
from backend.artifacts.heatmaps import save_heatmap
from backend.errors import InvalidInput
from backend.imaging.image_codec import encode_png
from backend.imaging.preview import shrunk
from backend.memory_bank.alignment import Aligned
from backend.memory_bank.coreset import Progress
from backend.scoring.inspection import Inspection
from backend.services.fit_request import Mode, Upload
from backend.serving.access import ADMIN, INSPECT
from backend.utils import Stopwatch

router = APIRouter(tags=["inspection"], route_class=Route)

_NOT_KEPT = "serial has no effect: no decisions are kept here. Set BDI_AUDIT=1."


@router.post(
    "/fit_ok", summary="Learn good images", response_model=FitAnswer, responses={202: {"model": JobStarted}}, **ADMIN
)
@on_writers_threads
def fit_ok(
    request: Request,
    service: ServiceOf,
    settings: SettingsOf,
    metrics: MetricsOf,
    history: HistoryOf,
    now_or_later: NowOrLater,
    key: KeyOfForm,
    mm_per_px: Annotated[MmPerPx, Form()],
    images: Annotated[list[ImageFile], File(description="Good images, PNG or JPEG; one or many.")] = [],  # noqa: B006
    use_dataset: Annotated[
        bool, Form(description="Learn exactly the ok images of the data set (and `images`).", examples=[False])
    ] = False,
    shape: Annotated[ShapeText, Form()] = None,
    part_id: Annotated[
        list[PartId],
        Form(
            description="One per image: images of one physical part share it, and are left out together.",
            examples=[["part-17"]],
        ),
    ] = [],  # noqa: B006
    mode: Annotated[Mode, Form(description="`add` to what was learned, or `replace` it.", examples=["add"])] = "add",
    memory_fit: Annotated[bool, Form(description="Keep every embedding (coreset rate 1).", examples=[False])] = False,
    coreset_rate: Annotated[
        float | None, Form(gt=0, le=1, allow_inf_nan=False, description="Share of embeddings to keep.", examples=[0.02])
    ] = None,
    aligned: Annotated[
        Aligned | None,
        Form(
            description="Whether parts always lie in the same place in the ROI. `auto`: its first images, once they "
            "show 8 parts, decide for all later ones. Left out: as before; for a new ROI as the service is set.",
            examples=["auto"],
        ),
    ] = None,
    reason: Annotated[Reason, Form()] = None,
) -> FitAnswer | JSONResponse:
    """Learn, or learn more of, what is normal. Images accumulate over calls; a repeated image is learned once."""
    check_uploads(len(images), "part_id", len(part_id), settings)
    uploads = [
        Upload(name=image.filename or f"image {n + 1}", data=image.file.read(), part_id=part or None)
        for n, (image, part) in enumerate(zip(images, part_id or [""] * len(images), strict=True))
    ]
    parsed = shape_of(request, shape)
    answer_fields = identity(request, key)
    if memory_fit and coreset_rate not in (None, 1.0):
        has_no_effect(request, "coreset_rate has no effect beside memory_fit=true, which keeps every embedding.")

    def fit(progress: Progress) -> FitAnswer:
        report = service.fit_ok(
            key,
            uploads,
            mm_per_px=mm_per_px,
            shape=parsed,
            mode=mode,
            use_dataset=use_dataset,
            coreset_rate=1.0 if memory_fit else coreset_rate,
            aligned=aligned,
            reason=reason or None,
            progress=progress,
        )
        metrics.count_fit(key)
        history.mark_fit(key, report.bank, report.threshold)
        bank, summary = report.bank, report.scores.summary()
        return FitAnswer(
            **answer_fields,
            **MemoryFacts.fields_of(bank),
            n_new=report.n_new,
            n_duplicates=report.n_duplicates,
            coreset_rate_requested=bank.options.coreset_rate,
            coreset_rate_applied=bank.coreset_rate_applied,
            extractor=service.extractor.get().name,
            ok_scores=ScoreSummary.model_validate(summary) if summary else None,
            suggested_threshold=report.scores.suggested_threshold(),
            suspects=[
                SuspectAnswer(
                    name=report.learned.names[suspect.digest],
                    digest=suspect.digest,
                    score=suspect.score,
                    times_median=suspect.times_median,
                )
                for suspect in report.learned.suspects
            ],
            threshold_without_suspects=report.learned.threshold_without_suspects,
            near_identical=[
                [report.learned.names[digest] for digest in group] for group in report.learned.near_identical
            ],
            calibration=report.calibration,
            threshold=report.threshold,
            warnings=list(report.warnings),
            timings_ms=dict(report.timings_ms),
        )

    return now_or_later("fit_ok", fit)


@router.post("/calibrate_ng", summary="Set a ROI's threshold", **ADMIN)
@on_writers_threads
def calibrate_ng(request: Request, service: ServiceOf, history: HistoryOf, body: CalibrateBody) -> CalibrateAnswer:
    """Set the threshold from good scores, and from up to a few bad ones, and say what it is worth."""
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    calibration = service.calibrate(key, **body.model_dump(exclude={"role_id", "roi_id", "model_key", "recipe_id"}))
    if not body.dry_run:
        history.mark_calibration(key, calibration)
    return CalibrateAnswer(**identity(request, key), **calibration.to_fields(), dry_run=body.dry_run)


@router.post(
    "/infer",
    summary="Inspect one image",
    response_model=InferAnswer,
    responses={200: {"description": "What was found.", "content": {"image/png": {"schema": PNG_FILE}}}},
    **INSPECT,
)
def infer(
    request: Request,
    service: ServiceOf,
    metrics: MetricsOf,
    audit: AuditOf,
    history: HistoryOf,
    key: KeyOfForm,
    mm_per_px: Annotated[MmPerPx, Form()],
    image: Annotated[ImageFile, File(description="The canonical ROI, PNG or JPEG.")],
    shape: Annotated[ShapeText, Form()] = None,
    heatmap: Annotated[
        Literal["base64", "path", "none", "overlay"],
        Form(
            description="How the heat map comes back; `overlay`: the image with map and regions drawn, in its place.",
            examples=["base64"],
        ),
    ] = "base64",
    overlay_px: Annotated[OverlayPx, Form()] = None,
    serial: Annotated[Serial, Form()] = None,
    trial: Annotated[Trial, Form()] = False,
    version: Annotated[TriedVersion, Form()] = None,
    accept: Annotated[
        str | None,
        Header(
            description="`image/png`: answer with the overlay as a PNG; the headers X-Score, X-Threshold, X-Decision, "
            "X-Reject-Reason and X-Regions say what was found.",
            examples=["application/json"],
        ),
    ] = None,
) -> InferAnswer | Response:
    """Score one image. A ROI without a calibration gives a score and a heat map, and no decision."""
    watch, name = Stopwatch(), image.filename or "image"
    if version is not None and not trial:
        raise InvalidInput(
            "version needs trial=true: parts of the line are judged by the version in force. POST /versions/activate "
            "brings another one into force.",
            details={"field": "version"},
        )
    data = image.file.read()
    parsed = shape_of(request, shape)
    inspection = service.infer(key, data, mm_per_px=mm_per_px, shape=parsed, name=name, version=version)
    digest = inspection.params["image_digest"]
    with watch.lap("encode"):
        as_png = wants_png(accept)
        if as_png or heatmap == "overlay":
            picture = inspection.overlay if overlay_px is None else shrunk(inspection.overlay, overlay_px)
        else:
            picture = inspection.heatmap
            if overlay_px is not None:
                has_no_effect(request, "overlay_px has no effect without heatmap=overlay or Accept: image/png.")
        png = b"" if heatmap == "none" and not as_png else encode_png(picture)
        text = base64.b64encode(png).decode() if heatmap in ("base64", "overlay") else None
        path = save_heatmap(service.store, key, digest, png) if heatmap == "path" and not as_png else None
    entry_id = None
    if audit.keeps:
        with watch.lap("audit"):
            entry_id = audit.keep(
                key,
                inspection,
                source="trial" if trial else "infer",
                image_name=name,
                request_id=request.state.request_id,
                caller=request.state.caller,
                serial=serial,
                image=None if trial else data,
            )
    if not trial:
        history.record(key, inspection, filename=name, serial=serial, audit_entry_id=entry_id)
    timings_ms = {**inspection.timings_ms, **watch.timings_ms()}
    request.state.found = {  # for the log
        "score": inspection.score,
        "threshold": inspection.threshold,
        "decision": inspection.decision or "none",
        "reject_reason": inspection.reject_reason,
        "image_digest": digest,
        "timings_ms": {stage: round(elapsed_ms, 3) for stage, elapsed_ms in timings_ms.items()},
    }
    if not trial:
        metrics.count_inspection(key, inspection.decision, timings_ms)
    if as_png:
        return Response(png, media_type="image/png", headers=_headers_of(inspection))
    return InferAnswer(
        **identity(request, key),
        score=inspection.score,
        threshold=inspection.threshold,
        decision=inspection.decision,
        reject_reason=inspection.reject_reason,
        image_check=ImageCheckAnswer.of(inspection.image_check),
        heatmap_png_base64=text,
        heatmap_path=path,
        regions=[RegionAnswer.of(region) for region in inspection.regions],
        warnings=[*inspection.warnings, *([_NOT_KEPT] if serial and not audit.keeps else [])],
        token_shape=inspection.grid_hw,
        params=InferParams.model_validate(dict(inspection.params)),
        timings_ms=timings_ms,
    )


def wants_png(accept: str | None) -> bool:
    """Return whether a picture is asked for by name, and JSON is not, or less."""
    quality = {"image/png": 0.0, "application/json": 0.0}
    for each in (accept or "").split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        if kind in quality:
            given = next((text[2:] for text in parameters if text.startswith("q=")), "1")
            quality[kind] = float(given) if re.fullmatch(r"[01](\.\d{0,3})?", given) else 1.0
    return quality["image/png"] > quality["application/json"]


def _headers_of(inspection: Inspection) -> dict[str, str]:
    return {
        "X-Score": repr(inspection.score),
        "X-Threshold": "" if inspection.threshold is None else repr(inspection.threshold),
        "X-Decision": inspection.decision or "none",
        "X-Reject-Reason": inspection.reject_reason or "none",
        "X-Regions": str(len(inspection.regions)),
    }
