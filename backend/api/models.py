"""What is stored: the state of a model, its manifest, and the recipes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from backend.api.dependencies import DatasetsOf, KeyOfQuery, RecipesOf, ServiceOf, identity
from backend.api.fields import MemoryFacts
from backend.api.own_threads import on_readers_threads, on_writers_threads
from backend.api.routing import Route
from backend.api.schemas import CalibrationFacts
from backend.api.store_schemas import (
    ClassSummary,
    FitFacts,
    ManifestAnswer,
    RecipeAnswer,
    RecipeCopyAnswer,
    RecipeCopyBody,
    RecipeDeleteAnswer,
    RecipesAnswer,
    StateAnswer,
)
from backend.artifacts.model_key import checked_recipe
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["models"], route_class=Route)


@router.get("/state", summary="Whether a ROI is fitted and calibrated", **INSPECT)
@on_readers_threads
def state(request: Request, service: ServiceOf, key: KeyOfQuery) -> StateAnswer:
    """Tell in two words what a ROI has."""
    model = service.describe(key)
    return StateAnswer(
        **identity(request, key),
        memory_fitted=model.bank is not None,
        calib_present=model.calibration is not None,
        calibration_stale=model.stale,
    )


@router.get("/manifest", summary="Everything that is known of a ROI", **INSPECT)
@on_readers_threads
def manifest(request: Request, service: ServiceOf, datasets: DatasetsOf, key: KeyOfQuery) -> ManifestAnswer:
    """Tell what a ROI was fitted and calibrated with, and what its data sets hold."""
    model = service.describe(key)
    bank, calibration = model.bank, model.calibration
    fit = None
    if bank is not None:
        fit = FitFacts(
            **MemoryFacts.fields_of(bank),
            coreset_rate=bank.options.coreset_rate,
            image_width=bank.placement.image_hw[1],
            image_height=bank.placement.image_hw[0],
            extractor_id=bank.extractor_id,
            k=bank.options.k,
            seed=bank.options.seed,
            shape=None if bank.shape is None else dict(bank.shape),
        )
    return ManifestAnswer(
        **identity(request, key),
        memory=bank is not None,
        calib=None if calibration is None else CalibrationFacts(**calibration.to_fields()),
        calibration_stale=model.stale,
        fit=fit,
        datasets={label: ClassSummary(count=len(images)) for label, images in datasets.list(key).items()},
    )


@router.get("/recipes", summary="All recipes and their models", **INSPECT)
@on_readers_threads
def recipes(request: Request, recipes: RecipesOf) -> RecipesAnswer:
    """List the recipes. A recipe never falls back to another one's artefacts."""
    found = [RecipeAnswer(recipe_id=name, models=keys) for name, keys in recipes.contents().items()]
    return RecipesAnswer(recipes=found, request_id=request.state.request_id)


@router.post("/recipes/copy", summary="Make a new recipe from an old one", status_code=201, **ADMIN)
@on_writers_threads
def copy_recipe(request: Request, recipes: RecipesOf, body: RecipeCopyBody) -> RecipeCopyAnswer:
    """Copy a recipe with its memories, calibrations and images; the new one is there completely, or not at all."""
    models = recipes.copy(body.source, body.target)
    return RecipeCopyAnswer(recipe_id=checked_recipe(body.target), models=models, request_id=request.state.request_id)


@router.delete("/recipes", summary="Remove an emptied recipe", **ADMIN)
def delete_recipe(
    request: Request,
    recipes: RecipesOf,
    recipe_id: Annotated[str, Query(min_length=1, max_length=64, description="The recipe.", examples=["summer"])],
) -> RecipeDeleteAnswer:
    """Remove a recipe that holds neither memories nor images; one that holds any is 409, and stays as it is."""
    recipes.delete(recipe_id)
    return RecipeDeleteAnswer(recipe_id=checked_recipe(recipe_id), request_id=request.state.request_id)
