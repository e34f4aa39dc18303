"""The HTTP face: parse, one call, answer. Nothing is loaded or made before the application starts up."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, cast

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, UploadFile

from backend import __version__
from backend.errors import InvalidInput, TooLarge
from backend.fitting import Mode, Upload
from backend.http_errors import ERROR_RESPONSES, install_error_handlers
from backend.image_codec import encode_png
from backend.infer import Inspection, Region
from backend.middleware import BodyLimit, RequestIds
from backend.model_key import DEFAULT_RECIPE, ModelKey, checked_recipe
from backend.roi_mask import parse_shape
from backend.schemas import (
    CalibrateAnswer,
    CalibrateBody,
    FitAnswer,
    HealthAnswer,
    InferAnswer,
    InferParams,
    MmPerPxForm,
    ModelKeyForm,
    RecipeIdForm,
    RegionAnswer,
    RoiIdForm,
    RoleIdForm,
    ScoreSummary,
    ShapeForm,
)
from backend.service import InspectionService
from backend.settings import Settings
from backend.utils import Stopwatch
from backend.wiring import build_service

_THREADS_BESIDE_INSPECTIONS = 24  # fits, calibrations, listings

router = APIRouter()


def create_app(settings: Settings | None = None, service: InspectionService | None = None) -> FastAPI:
    """Return the application.

    Args:
        settings: The settings; read from the environment at start-up by default.
        service: Takes the place of the one that the settings describe.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.settings = settings or Settings()
        app.state.service = service or build_service(app.state.settings)
        # Every waiting inspection holds a thread; the queue must be what bounds them, with its 503.
        threads = app.state.settings.queue_length + _THREADS_BESIDE_INSPECTIONS
        anyio.to_thread.current_default_thread_limiter().total_tokens = threads
        app.state.service.start()
        yield
        await anyio.to_thread.run_sync(app.state.service.close)

    app = FastAPI(
        title="ROI inspector",
        version=__version__,
        description=__doc__.split(".")[0] + ". Learns from good images of a ROI, and finds what is not normal.",
        lifespan=lifespan,
        responses=cast("dict[int | str, dict[str, Any]]", ERROR_RESPONSES),
    )
    app.include_router(router)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestIds)
    install_error_handlers(app)
    return app


def _service(request: Request) -> InspectionService:
    return cast("InspectionService", request.app.state.service)


Service = Annotated[InspectionService, Depends(_service)]


def _model_key(request: Request, role_id: str, roi_id: str, model_key: str | None, recipe_id: str | None) -> ModelKey:
    recipe = checked_recipe(recipe_id or request.headers.get("X-Recipe-Id") or DEFAULT_RECIPE)
    request.state.recipe_id = recipe
    return ModelKey(recipe_id=recipe, role_id=role_id, roi_id=roi_id, model_key=model_key or "")


def _key_of_form(
    request: Request,
    role_id: RoleIdForm,
    roi_id: RoiIdForm,
    model_key: ModelKeyForm = None,
    recipe_id: RecipeIdForm = None,
) -> ModelKey:
    return _model_key(request, role_id, roi_id, model_key, recipe_id)


KeyOfForm = Annotated[ModelKey, Depends(_key_of_form)]


def _identity(request: Request, key: ModelKey) -> dict[str, str]:
    return {
        "role_id": key.role_id,
        "roi_id": key.roi_id,
        "model_key": key.model_key,
        "recipe_id": key.recipe_id,
        "request_id": request.state.request_id,
    }


@router.get("/health", summary="Whether the service can inspect")
async def health(request: Request, service: Service) -> HealthAnswer:
    """Answer at once, whatever the device is doing."""
    state, settings = service.extractor_state, cast("Settings", request.app.state.settings)
    device = state.extractor.device if state.extractor else settings.device
    hoped_for = "filter-bank" if settings.extractor == "filter-bank" else "dinov2-vit-s/14"
    return HealthAnswer(
        status=state.status,
        device="cuda" if device.startswith("cuda") else "cpu",
        model=state.extractor.name if state.extractor else hoped_for,
        version=__version__,
        reason=state.reason,
        request_id=request.state.request_id,
    )


@router.post("/fit_ok", summary="Learn good images")
def fit_ok(
    request: Request,
    service: Service,
    key: KeyOfForm,
    mm_per_px: MmPerPxForm,
    images: Annotated[list[UploadFile], File(description="Good images, PNG or JPEG; one or many.")],
    shape: ShapeForm = None,
    part_id: Annotated[
        list[str] | None,
        Form(description="One per image: images of one physical part share it, and are left out together."),
    ] = None,
    mode: Annotated[Mode, Form(description="`add` to what was learned, or `replace` it.")] = "add",
    memory_fit: Annotated[bool, Form(description="Keep every embedding (coreset rate 1).")] = False,
    coreset_rate: Annotated[
        float | None, Form(gt=0, le=1, allow_inf_nan=False, description="Share of embeddings to keep.", examples=[0.02])
    ] = None,
) -> FitAnswer:
    """Learn, or learn more of, what is normal. Images accumulate over calls; a repeated image is learned once."""
    report = service.fit_ok(
        key,
        _uploads(request, images, part_id),
        mm_per_px=mm_per_px,
        shape=parse_shape(shape),
        mode=mode,
        coreset_rate=1.0 if memory_fit else coreset_rate,
    )
    bank, summary = report.bank, report.scores.summary()
    extractor = service.extractor_state.extractor
    return FitAnswer(
        **_identity(request, key),
        n_ok_total=len(bank.image_digests),
        n_new=report.n_new,
        n_duplicates=report.n_duplicates,
        n_parts=bank.n_parts,
        n_embeddings=bank.n_embeddings,
        coreset_size=len(bank.vectors),
        coreset_rate_requested=bank.coreset_rate,
        coreset_rate_applied=bank.coreset_rate_applied,
        token_shape=bank.placement.grid_hw,
        cell_mm=bank.placement.cell_mm(bank.mm_per_px),
        mm_per_px=bank.mm_per_px,
        checksum=bank.checksum,
        extractor=extractor.name if extractor else bank.extractor_id,
        ok_scores=ScoreSummary.model_validate(summary) if summary and bank.n_parts >= 2 else None,
        suggested_threshold=report.scores.suggested_threshold(),
        calibration=report.calibration,
        threshold=report.threshold,
        warnings=list(report.warnings),
        timings_ms=dict(report.timings_ms),
    )


@router.post("/calibrate_ng", summary="Set a ROI's threshold")
def calibrate_ng(request: Request, service: Service, body: CalibrateBody) -> CalibrateAnswer:
    """Set the threshold from good scores, and from up to a few bad ones, and say what it is worth."""
    key = _model_key(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    calibration = service.calibrate(key, **body.model_dump(exclude={"role_id", "roi_id", "model_key", "recipe_id"}))
    return CalibrateAnswer(**_identity(request, key), **calibration.to_fields())


@router.post("/infer", summary="Inspect one image")
def infer(
    request: Request,
    service: Service,
    key: KeyOfForm,
    mm_per_px: MmPerPxForm,
    image: Annotated[UploadFile, File(description="The canonical ROI, PNG or JPEG.")],
    shape: ShapeForm = None,
    heatmap: Annotated[Literal["base64", "path", "none"], Form(description="How the heat map comes back.")] = "base64",
) -> InferAnswer:
    """Score one image. A ROI without a calibration gives a score and a heat map, and no decision."""
    watch = Stopwatch()
    inspection = service.infer(
        key,
        image.file.read(),
        mm_per_px=mm_per_px,
        shape=parse_shape(shape),
        name=image.filename or "image",
    )
    with watch.lap("encode"):
        png = None if heatmap == "none" else encode_png(inspection.heatmap)
        path = service.keep_heatmap(key, inspection, png) if png is not None and heatmap == "path" else None
        text = base64.b64encode(png).decode() if png is not None and heatmap == "base64" else None
    return InferAnswer(
        **_identity(request, key),
        score=inspection.score,
        threshold=inspection.threshold,
        decision=inspection.decision,
        heatmap_png_base64=text,
        heatmap_path=path,
        regions=[_region(region) for region in inspection.regions],
        token_shape=inspection.grid_hw,
        params=_params(inspection),
        timings_ms={**inspection.timings_ms, **watch.timings_ms()},
    )


def _uploads(request: Request, images: list[UploadFile], part_ids: list[str] | None) -> list[Upload]:
    limit = cast("Settings", request.app.state.settings).max_images
    if len(images) > limit:
        raise TooLarge(f"{len(images)} images in one call; at most {limit} are allowed. Send them in several calls.")
    if part_ids and len(part_ids) != len(images):
        raise InvalidInput(
            f"{len(part_ids)} part_id fields for {len(images)} images. Send one for each image, or none.",
            details={"field": "part_id"},
        )
    parts: list[str | None] = [part or None for part in part_ids] if part_ids else [None] * len(images)
    return [
        Upload(name=image.filename or f"image {n + 1}", data=image.file.read(), part_id=part)
        for n, (image, part) in enumerate(zip(images, parts, strict=True))
    ]


def _params(inspection: Inspection) -> InferParams:
    return InferParams.model_validate(dict(inspection.params))


def _region(region: Region) -> RegionAnswer:
    x, y, w, h = region.bbox_xywh_px
    return RegionAnswer(
        bbox=region.bbox_xywh_px,
        x=x,
        y=y,
        w=w,
        h=h,
        area_px=region.area_px,
        area_mm2=region.area_mm2,
        peak=region.peak_score,
        contour=list(region.contour_xy),
    )


app = create_app()
