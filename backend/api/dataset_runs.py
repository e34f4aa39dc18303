"""Inspecting and calibrating with whole data sets."""

from __future__ import annotations

import base64

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from backend.api.dependencies import AuditOf, DatasetsOf, HistoryOf, NowOrLater, ServiceOf, identity, model_key_of
from backend.api.infer_schemas import RegionAnswer
from backend.api.own_threads import on_writers_threads
from backend.api.routing import Route
from backend.api.store_schemas import (
    CalibrateDatasetAnswer,
    CalibrateDatasetBody,
    DatasetItemAnswer,
    FailedItem,
    InferDatasetAnswer,
    InferDatasetBody,
    JobStarted,
)
from backend.imaging.image_codec import encode_png
from backend.memory_bank.coreset import Progress
from backend.services.dataset_runs import DatasetItem, calibrate_from_dataset, inspect_dataset
from backend.services.datasets import LABELS
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["datasets"], route_class=Route)


@router.post(
    "/calibrate_dataset",
    summary="Set a ROI's threshold from its data set",
    response_model=CalibrateDatasetAnswer,
    responses={202: {"model": JobStarted}},
    **ADMIN,
)
@on_writers_threads
def calibrate_dataset(
    request: Request,
    service: ServiceOf,
    datasets: DatasetsOf,
    history: HistoryOf,
    now_or_later: NowOrLater,
    body: CalibrateDatasetBody,
) -> CalibrateDatasetAnswer | JSONResponse:
    """Inspect all stored images, each learned one without its own part, and calibrate with their scores."""
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    answer_fields = identity(request, key)

    def calibrate(progress: Progress) -> CalibrateDatasetAnswer:
        calibration, failed = calibrate_from_dataset(
            service,
            datasets,
            key,
            default_mm_per_px=body.default_mm_per_px,
            score_mode=body.score_mode,
            score_percentile=body.score_percentile,
            area_mm2_thr=body.area_mm2_thr,
            ok_percentile=body.ok_percentile,
            margin=body.margin,
            threshold=body.threshold,
            dry_run=body.dry_run,
            reason=body.reason,
            require_ng=body.require_ng,
            progress=progress,
        )
        if not body.dry_run:
            history.mark_calibration(key, calibration)
        return CalibrateDatasetAnswer(
            **answer_fields,
            **calibration.to_fields(),
            dry_run=body.dry_run,
            failed=[
                FailedItem(label=item.image.label, filename=item.image.file_name, error=item.error or "")
                for item in failed
            ],
        )

    return now_or_later("calibrate_dataset", calibrate)


@router.post(
    "/infer_dataset",
    summary="Inspect a data set",
    response_model=InferDatasetAnswer,
    responses={202: {"model": JobStarted}},
    **INSPECT,
)
@on_writers_threads
def infer_dataset(
    request: Request,
    service: ServiceOf,
    datasets: DatasetsOf,
    audit: AuditOf,
    now_or_later: NowOrLater,
    body: InferDatasetBody,
) -> InferDatasetAnswer | JSONResponse:
    """Inspect all stored images; an image that cannot be inspected has its error in its own line."""
    key = model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
    answer_fields = identity(request, key)
    request_id, caller = request.state.request_id, request.state.caller

    def inspect(progress: Progress) -> InferDatasetAnswer:
        labels, mm_per_px = body.labels or LABELS, body.default_mm_per_px
        items = []
        for item in inspect_dataset(
            service, datasets, key, labels=labels, default_mm_per_px=mm_per_px, progress=progress
        ):
            if item.inspection is not None:
                audit.keep(
                    key,
                    item.inspection,
                    source="infer_dataset",
                    image_name=item.image.file_name,
                    request_id=request_id,
                    caller=caller,
                )
            items.append(_item(item, body.include_heatmap))
        errors = sum(item.error is not None for item in items)
        return InferDatasetAnswer(**answer_fields, n_total=len(items), n_errors=errors, items=items)

    return now_or_later("infer_dataset", inspect)


def _item(item: DatasetItem, include_heatmap: bool) -> DatasetItemAnswer:
    answer = DatasetItemAnswer(
        label=item.image.label, filename=item.image.file_name, mm_per_px=item.mm_per_px, error=item.error
    )
    found = item.inspection
    if found is None:
        return answer
    return answer.model_copy(
        update={
            "score": found.score,
            "threshold": found.threshold,
            "decision": found.decision,
            "reject_reason": found.reject_reason,
            "scoring": found.params["scoring"],
            "regions": [RegionAnswer.of(region) for region in found.regions],
            "n_regions": len(found.regions),
            "warnings": list(found.warnings),
            "heatmap_png_base64": base64.b64encode(encode_png(found.heatmap)).decode() if include_heatmap else None,
        }
    )
