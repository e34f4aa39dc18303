"""Inspecting and calibrating with whole data sets."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from backend.api.answers import heatmap_base64, region_answers
from backend.api.audit import BookkeeperOf
from backend.api.dependencies import (
    DatasetsOf,
    JobsOf,
    PrefersAsync,
    ServiceOf,
    identity,
    model_key_of,
    now_or_later,
)
from backend.api.store_schemas import (
    CalibrateDatasetAnswer,
    CalibrateDatasetBody,
    DatasetItemAnswer,
    FailedItem,
    InferDatasetAnswer,
    InferDatasetBody,
    JobStarted,
)
from backend.memory_bank.coreset import Progress
from backend.services.dataset_runs import DatasetItem, calibrate_from_dataset, inspect_dataset
from backend.services.datasets import LABELS
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["datasets"])


@router.post(
    "/calibrate_dataset",
    summary="Set a ROI's threshold from its data set",
    response_model=CalibrateDatasetAnswer,
    responses={202: {"model": JobStarted}},
    **ADMIN,
)
def calibrate_dataset(
    request: Request,
    service: ServiceOf,
    datasets: DatasetsOf,
    jobs: JobsOf,
    prefers_async: PrefersAsync,
    body: CalibrateDatasetBody,
) -> CalibrateDatasetAnswer | JSONResponse:
    """Inspect all stored images, each learned one without its own part, and calibrate with their scores."""
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    answer_fields = identity(request, key)

    def calibrate(progress: Progress) -> CalibrateDatasetAnswer:
        found = calibrate_from_dataset(
            service,
            datasets,
            key,
            default_mm_per_px=body.default_mm_per_px,
            score_percentile=body.score_percentile,
            area_mm2_thr=body.area_mm2_thr,
            require_ng=body.require_ng,
            progress=progress,
        )
        failed = [
            FailedItem(label=item.label, filename=item.image.file_name, error=item.error or "") for item in found.failed
        ]
        return CalibrateDatasetAnswer(**answer_fields, **found.calibration.to_fields(), failed=failed)

    return now_or_later(request, jobs, prefers_async, "calibrate_dataset", calibrate)


@router.post(
    "/infer_dataset",
    summary="Inspect a data set",
    response_model=InferDatasetAnswer,
    responses={202: {"model": JobStarted}},
    **INSPECT,
)
def infer_dataset(
    request: Request,
    service: ServiceOf,
    datasets: DatasetsOf,
    jobs: JobsOf,
    prefers_async: PrefersAsync,
    bookkeeper: BookkeeperOf,
    body: InferDatasetBody,
) -> InferDatasetAnswer | JSONResponse:
    """Inspect all stored images; an image that cannot be inspected has its error in its own line."""
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    answer_fields = identity(request, key)

    def inspect(progress: Progress) -> InferDatasetAnswer:
        found = inspect_dataset(
            service,
            datasets,
            key,
            labels=body.labels or LABELS,
            default_mm_per_px=body.default_mm_per_px,
            progress=progress,
        )
        items = []
        for item in found:
            if item.inspection is not None:
                bookkeeper.keep(key, item.inspection, source="infer_dataset", image_name=item.image.file_name)
            items.append(_item(item, body.include_heatmap))
        errors = sum(item.error is not None for item in items)
        return InferDatasetAnswer(**answer_fields, n_total=len(items), n_errors=errors, items=items)

    return now_or_later(request, jobs, prefers_async, "infer_dataset", inspect)


def _item(item: DatasetItem, include_heatmap: bool) -> DatasetItemAnswer:
    found = item.inspection
    if found is None:
        return DatasetItemAnswer(
            label=item.label, filename=item.image.file_name, mm_per_px=item.mm_per_px, error=item.error
        )
    regions = region_answers(found)
    return DatasetItemAnswer(
        label=item.label,
        filename=item.image.file_name,
        mm_per_px=item.mm_per_px,
        score=found.score,
        threshold=found.threshold,
        decision=found.decision,
        scoring=found.params["scoring"],
        regions=regions,
        n_regions=len(regions),
        heatmap_png_base64=heatmap_base64(found) if include_heatmap else None,
        error=None,
    )
