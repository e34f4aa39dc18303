"""The ordered endpoints: learn, calibrate, inspect, health."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse

from backend import __version__
from backend.api.answers import engine_answer, fit_answer, heatmap_base64, inspection_log_fields, region_answers
from backend.api.audit import BookkeeperOf
from backend.api.dependencies import (
    GateOf,
    JobsOf,
    KeyOfForm,
    MetricsOf,
    PrefersAsync,
    ServiceOf,
    SettingsOf,
    check_count,
    identity,
    model_key_of,
    now_or_later,
)
from backend.api.fields import ImageFile, MmPerPxForm, PartId, ShapeForm
from backend.api.schemas import CalibrateAnswer, CalibrateBody, FitAnswer, HealthAnswer, InferAnswer, InferParams
from backend.api.store_schemas import JobStarted
from backend.errors import InvalidInput
from backend.imaging.image_codec import encode_png
from backend.memory_bank.coreset import Progress
from backend.roi_mask import parse_shape
from backend.services.fit_request import Mode, Upload
from backend.serving.access import ADMIN, INSPECT, OPEN
from backend.utils import Stopwatch

router = APIRouter(tags=["inspection"])


@router.get("/health", summary="Whether the service can inspect", **OPEN)
async def health(request: Request, service: ServiceOf, settings: SettingsOf, gate: GateOf) -> HealthAnswer:
    """Answer at once, whatever the device is doing. Where keys are needed, a caller without one is told no reason."""
    state = service.extractor_state
    damage = service.store.quarantine.reason
    degraded = " ".join(reason for reason in (state.reason, damage) if reason) or None
    reason = "The service is stopping." if gate.stopping else degraded
    if reason and request.app.state.api_keys and request.state.caller is None:
        reason = "Ask with an API key for the reason."  # a reason may name a ROI
    device = state.extractor.device if state.extractor else settings.device
    hoped_for = "filter-bank" if settings.extractor == "filter-bank" else "dinov2-vit-s/14"
    return HealthAnswer(
        status="stopping" if gate.stopping else "degraded" if damage and state.status == "ok" else state.status,
        device="cuda" if device.startswith("cuda") else "cpu",
        model=state.extractor.name if state.extractor else hoped_for,
        version=__version__,
        engine=engine_answer(state.extractor),
        reason=reason,
        request_id=request.state.request_id,
    )


@router.post(
    "/fit_ok", summary="Learn good images", response_model=FitAnswer, responses={202: {"model": JobStarted}}, **ADMIN
)
def fit_ok(
    request: Request,
    service: ServiceOf,
    settings: SettingsOf,
    jobs: JobsOf,
    metrics: MetricsOf,
    prefers_async: PrefersAsync,
    key: KeyOfForm,
    mm_per_px: MmPerPxForm,
    images: Annotated[list[ImageFile], File(description="Good images, PNG or JPEG; one or many.")] = [],  # noqa: B006
    use_dataset: Annotated[
        bool, Form(description="Learn exactly the ok images of the data set (and `images`).", examples=[False])
    ] = False,
    shape: ShapeForm = None,
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
) -> FitAnswer | JSONResponse:
    """Learn, or learn more of, what is normal. Images accumulate over calls; a repeated image is learned once."""
    check_count(len(images), settings)
    uploads = _uploads(images, part_id)
    parsed = parse_shape(shape)
    answer_fields = identity(request, key)

    def fit(progress: Progress) -> FitAnswer:
        report = service.fit_ok(
            key,
            uploads,
            mm_per_px=mm_per_px,
            shape=parsed,
            mode=mode,
            use_dataset=use_dataset,
            coreset_rate=1.0 if memory_fit else coreset_rate,
            progress=progress,
        )
        metrics.count_fit(key)
        return fit_answer(report, service.extractor_name, answer_fields)

    return now_or_later(request, jobs, prefers_async, "fit_ok", fit)


@router.post("/calibrate_ng", summary="Set a ROI's threshold", **ADMIN)
def calibrate_ng(
    request: Request,
    service: ServiceOf,
    body: CalibrateBody,
) -> CalibrateAnswer:
    """Set the threshold from good scores, and from up to a few bad ones, and say what it is worth."""
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    calibration = service.calibrate(key, **body.model_dump(exclude={"role_id", "roi_id", "model_key", "recipe_id"}))
    return CalibrateAnswer(**identity(request, key), **calibration.to_fields())


@router.post("/infer", summary="Inspect one image", **INSPECT)
def infer(
    request: Request,
    service: ServiceOf,
    metrics: MetricsOf,
    bookkeeper: BookkeeperOf,
    key: KeyOfForm,
    mm_per_px: MmPerPxForm,
    image: Annotated[ImageFile, File(description="The canonical ROI, PNG or JPEG.")],
    shape: ShapeForm = None,
    heatmap: Annotated[
        Literal["base64", "path", "none"], Form(description="How the heat map comes back.", examples=["base64"])
    ] = "base64",
) -> InferAnswer:
    """Score one image. A ROI without a calibration gives a score and a heat map, and no decision."""
    watch, name = Stopwatch(), image.filename or "image"
    inspection = service.infer(key, image.file.read(), mm_per_px=mm_per_px, shape=parse_shape(shape), name=name)
    with watch.lap("encode"):
        text = heatmap_base64(inspection) if heatmap == "base64" else None
        path = service.keep_heatmap(key, inspection, encode_png(inspection.heatmap)) if heatmap == "path" else None
    if bookkeeper.keeps:
        with watch.lap("audit"):
            bookkeeper.keep(key, inspection, source="infer", image_name=name)
    timings_ms = {**inspection.timings_ms, **watch.timings_ms()}
    request.state.found = inspection_log_fields(inspection, timings_ms)
    metrics.count_inspection(key, inspection.decision, timings_ms)
    return InferAnswer(
        **identity(request, key),
        score=inspection.score,
        threshold=inspection.threshold,
        decision=inspection.decision,
        heatmap_png_base64=text,
        heatmap_path=path,
        regions=region_answers(inspection),
        token_shape=inspection.grid_hw,
        params=InferParams.model_validate(dict(inspection.params)),
        timings_ms=timings_ms,
    )


def _uploads(images: list[UploadFile], part_ids: list[str]) -> list[Upload]:
    if part_ids and len(part_ids) != len(images):
        raise InvalidInput(
            f"{len(part_ids)} part_id fields for {len(images)} images. Send one for each image, or none.",
            details={"field": "part_id"},
        )
    parts = part_ids or [""] * len(images)
    return [
        Upload(name=image.filename or f"image {n + 1}", data=image.file.read(), part_id=part or None)
        for n, (image, part) in enumerate(zip(images, parts, strict=True))
    ]
