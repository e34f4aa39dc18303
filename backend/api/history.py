"""What was decided: the models of a recipe at a glance, decisions, and trends."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request

from backend.api.dependencies import KeyOfQuery, OverviewOf, SettingsOf, TrendsOf, identity
from backend.api.fields import RecipeId
from backend.api.history_schemas import (
    BucketAnswer,
    DecisionAnswer,
    DecisionsAnswer,
    DecisionsQuery,
    DriftAnswer,
    MarkAnswer,
    OverviewAnswer,
    OverviewEntry,
    StatsAnswer,
    StatsQuery,
    StripEntry,
    ratio_of,
)
from backend.api.routing import Route, has_no_effect
from backend.artifacts.model_key import DEFAULT_RECIPE, checked_recipe
from backend.errors import HistoryUnavailable
from backend.history.calendar import iso
from backend.history.drift import Drift
from backend.history.reading import Recent
from backend.services.overview import ModelSummary
from backend.serving.access import INSPECT

router = APIRouter(tags=["history"], route_class=Route)

_NAME_OF_EXTRACTOR = re.compile(r"\||/v\d")
"""What comes after its name in the id of an extractor."""

_OFF = "Decisions are not kept: BDI_HISTORY is 0."


@router.get("/overview", summary="The ROIs of a recipe at a glance", **INSPECT)
def find_overview(
    request: Request,
    overview: OverviewOf,
    trends: TrendsOf,
    settings: SettingsOf,
    recipe_id: Annotated[RecipeId, Query()] = None,
) -> OverviewAnswer:
    """Tell of each ROI what it has, what it decided last, and whether its scores have moved."""
    recipe = checked_recipe(recipe_id or request.headers.get("X-Recipe-Id") or DEFAULT_RECIPE)
    request.state.recipe_id = recipe
    models = overview.of_recipe(recipe)
    _name_if_off(request, settings.history)
    try:
        recent = trends.recent([model.key for model in models])
    except HistoryUnavailable as error:
        has_no_effect(request, error.sentence)
        recent = {}
    nothing = Recent(last=[], n=0, n_ng=0), Drift(state="too_few")
    rois = [_entry(model, *recent.get(model.key, nothing)) for model in models]
    return OverviewAnswer(recipe_id=recipe, rois=rois, request_id=request.state.request_id)


@router.get("/decisions", summary="The last decisions of a ROI", **INSPECT)
def find_last_decisions(
    request: Request, trends: TrendsOf, settings: SettingsOf, key: KeyOfQuery, query: Annotated[DecisionsQuery, Query()]
) -> DecisionsAnswer:
    """Return what `/infer` has decided; inspections of a data set are not among it."""
    _name_if_off(request, settings.history)
    found = trends.decisions(key, **query.model_dump())
    return DecisionsAnswer(
        **identity(request, key),
        decisions=[DecisionAnswer.of(row) for row in found],
        next_before_id=found[-1]["id"] if len(found) == query.limit else None,
    )


@router.get("/stats", summary="A ROI's decisions over time", **INSPECT)
def find_stats(
    request: Request, trends: TrendsOf, settings: SettingsOf, key: KeyOfQuery, query: Annotated[StatsQuery, Query()]
) -> StatsAnswer:
    """Return rates, medians and 95th percentiles by hour, shift or day, and whether the scores have moved."""
    _name_if_off(request, settings.history)
    if query.bucket != "shift" and "shifts" in query.model_fields_set:
        has_no_effect(request, f"shifts has no effect with bucket={query.bucket}.")
    found = trends.trend(key, **query.model_dump())
    return StatsAnswer(
        **identity(request, key),
        buckets=[BucketAnswer.of(bucket, found.zone) for bucket in found.buckets],
        marks=[MarkAnswer.model_validate({**mark, "at": iso(mark["at"])}) for mark in found.marks],
        drift=DriftAnswer.of(found.drift),
    )


def _name_if_off(request: Request, kept: int) -> None:
    if not kept:
        has_no_effect(request, _OFF)


def _entry(model: ModelSummary, recent: Recent, drift: Drift) -> OverviewEntry:
    return OverviewEntry(
        role_id=model.key.role_id,
        roi_id=model.key.roi_id,
        model_key=model.key.model_key,
        fitted=model.is_fitted,
        calibrated=model.is_calibrated,
        calibration_stale=model.is_stale,
        fault=model.fault,
        extractor=model.extractor_id and _NAME_OF_EXTRACTOR.split(model.extractor_id)[0],
        n_ok=model.n_ok,
        n_ng=model.n_ng,
        fitted_at=None if model.fitted_at is None else iso(model.fitted_at),
        calibrated_at=None if model.calibrated_at is None else iso(model.calibrated_at),
        threshold=model.threshold,
        score_mode=model.score_mode,
        last=[
            StripEntry.model_construct(  # not validated: a recipe has thousands
                at=iso(row["at"]),
                decision=row["decision"],
                score=row["score"],
                ratio=ratio_of(row),
                reject_reason=row["reject_reason"],
            )
            for row in recent.last
        ],
        n_decisions_24h=recent.n,
        ng_rate_24h=recent.n_ng / recent.n if recent.n else None,
        drift=DriftAnswer.of(drift),
    )
