"""Making memories anew from the stored images: what is sent, what is answered, and the route."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from backend.api.dependencies import HistoryOf, MetricsOf, NowOrLater, ServiceOf, model_key_of
from backend.api.fields import Count, ModelKeyId, Ok, RecipeId, Reply, RoiId, RoleId, Score
from backend.api.own_threads import on_writers_threads
from backend.api.routing import Route
from backend.api.store_schemas import JobStarted, RecipeModel
from backend.artifacts.model_key import ModelKey, checked_recipe
from backend.calib import Calibration
from backend.errors import InvalidInput
from backend.memory_bank.coreset import Progress
from backend.services.refit_runs import RefitItem, fitted_models, refit_models
from backend.serving.access import ADMIN

router = APIRouter(tags=["models"], route_class=Route)


class RefitBody(BaseModel):
    """Which memories to make anew: one model's, or all."""

    role_id: RoleId | None = Field(None, description="Role of the ROI; not with `all`.", examples=["Inspection"])
    roi_id: RoiId | None = Field(None, description="The ROI; not with `all`.", examples=["inspection-1"])
    model_key: ModelKeyId = None
    recipe_id: RecipeId = None
    all: bool = Field(
        False,
        description="All models that need it, of all recipes or of that of the field `recipe_id`.",
        examples=[False],
    )
    force: bool = Field(False, description="Also make anew what is up to date.", examples=[False])


class SetAside(BaseModel):
    """A threshold that could not be renewed, and what it rested on."""

    threshold: Score = Field(description="As it was.", examples=[0.56])
    ok_scores_from: Literal["stored", "request", "dataset"] = Field(
        description="Where its OK scores came from.", examples=["stored"]
    )
    n_ok: Count = Field(description="Its OK scores.", examples=[30])
    n_ng: Count = Field(description="Its NG scores.", examples=[2])

    @staticmethod
    def of(calibration: Calibration) -> SetAside:
        """Return what an answer says of a calibration."""
        return SetAside(
            threshold=calibration.threshold,
            ok_scores_from=calibration.ok_scores_from,
            n_ok=calibration.n_ok,
            n_ng=calibration.n_ng,
        )


class RefitItemAnswer(RecipeModel):
    """What came of one model."""

    recipe_id: str = Field(description="Its recipe.", examples=["default"])
    status: Literal["done", "skipped", "failed"] = Field(description="`skipped`: it was up to date.", examples=["done"])
    n_ok_total: Count | None = Field(description="Images in the new memory; null unless `done`.", examples=[30])
    calibration: Literal["none", "kept", "renewed", "stale"] | None = Field(
        description="As in /fit_ok; null unless `done`.", examples=["renewed"]
    )
    threshold: Score | None = Field(description="The threshold in force after it, if any.", examples=[0.56])
    set_aside: SetAside | None = Field(description="The threshold that could not be renewed.", examples=[None])
    warnings: list[str] = Field(description="What the engineer should know.", examples=[[]])
    error: str | None = Field(description="Why it failed, and what to do.", examples=[None])
    code: str | None = Field(description="The error's code.", examples=[None])

    @staticmethod
    def of(item: RefitItem) -> RefitItemAnswer:
        """Return what an answer says of one model."""
        report, key = item.report, item.key
        return RefitItemAnswer(
            role_id=key.role_id,
            roi_id=key.roi_id,
            model_key=key.model_key,
            recipe_id=key.recipe_id,
            status=item.status,
            n_ok_total=None if report is None or report.bank is None else len(report.bank.image_digests),
            calibration=None if report is None else report.calibration,
            threshold=None if report is None else report.threshold,
            set_aside=None if report is None or report.set_aside is None else SetAside.of(report.set_aside),
            warnings=[] if report is None else list(report.warnings),
            error=None if item.error is None else item.error.sentence,
            code=None if item.error is None else item.error.code,
        )


class RefitAnswer(Reply):
    """What came of all of them."""

    status: Ok = "ok"
    n_done: Count = Field(description="Models that were made anew.", examples=[1])
    n_skipped: Count = Field(description="Models that were up to date.", examples=[0])
    n_failed: Count = Field(description="Models that could not be made anew; only with `all`.", examples=[0])
    items: list[RefitItemAnswer] = Field(description="One per model.")


@router.post(
    "/refit",
    summary="Make memories anew from the stored images",
    response_model=RefitAnswer,
    responses={202: {"model": JobStarted}},
    **ADMIN,
)
@on_writers_threads
def refit(
    request: Request,
    service: ServiceOf,
    metrics: MetricsOf,
    history: HistoryOf,
    now_or_later: NowOrLater,
    body: RefitBody,
) -> RefitAnswer | JSONResponse:
    """Learn again what a model had learned, after an update of the service or with another extractor.

    Images, part ids, shape, scale and fit options stay, and so do the settings of the calibration. A threshold that
    rests on scores that were sent is set aside and named. What fails with `all` is one of the items.
    """
    named = _named(request, body)
    of_recipe = None if body.recipe_id is None else checked_recipe(body.recipe_id)
    request_id = request.state.request_id

    def run(progress: Progress) -> RefitAnswer:
        keys = fitted_models(service.store, of_recipe) if named is None else [named]
        items = []
        for item in refit_models(service.refitter, keys, force=body.force, progress=progress):
            if item.error is not None and named is not None:
                raise item.error
            if item.status == "done":
                metrics.count_fit(item.key)
                if item.report is not None and item.report.bank is not None:
                    history.mark_fit(item.key, item.report.bank, item.report.threshold)
            items.append(RefitItemAnswer.of(item))
        count = Counter(item.status for item in items)
        return RefitAnswer(
            request_id=request_id,
            n_done=count["done"],
            n_skipped=count["skipped"],
            n_failed=count["failed"],
            items=items,
        )

    return now_or_later("refit", run)


def _named(request: Request, body: RefitBody) -> ModelKey | None:
    """Return the model that a body names, None where it says all.

    Raises:
        InvalidInput: If it says both, or neither.
    """
    if body.all and (body.role_id, body.roi_id, body.model_key) != (None, None, None):
        raise InvalidInput("all is true, and a ROI is named. Send one of the two.", details={"field": "all"})
    if body.all:
        return None
    if body.role_id is None or body.roi_id is None:
        field = "role_id" if body.role_id is None else "roi_id"
        raise InvalidInput(
            f"The field {field} is missing. Name a ROI with role_id and roi_id, or send all=true.",
            details={"field": field},
        )
    return model_key_of(request, body.role_id, body.roi_id, body.model_key, body.recipe_id)
