"""What is stored: the state of a model, its manifest, and the recipes."""

from __future__ import annotations

from fastapi import APIRouter, Request

from backend.api.dependencies import DatasetsOf, KeyOfQuery, RecipesOf, ServiceOf, identity
from backend.api.schemas import CalibrationFacts
from backend.api.store_schemas import (
    ClassSummary,
    FitFacts,
    ManifestAnswer,
    RecipeAnswer,
    RecipeCopyAnswer,
    RecipeCopyBody,
    RecipeModel,
    RecipesAnswer,
    StateAnswer,
)
from backend.artifacts.model_key import ModelKey, checked_recipe
from backend.artifacts.stored_image import Label, StoredImage
from backend.calib import Calibration
from backend.memory_bank.bank import MemoryBank
from backend.services.model_cache import LoadedModel
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["models"])


@router.get("/state", summary="Whether a ROI is fitted and calibrated", **INSPECT)
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
def manifest(request: Request, service: ServiceOf, datasets: DatasetsOf, key: KeyOfQuery) -> ManifestAnswer:
    """Tell what a ROI was fitted and calibrated with, and what its data sets hold."""
    model = service.describe(key)
    return ManifestAnswer(
        **identity(request, key),
        memory=model.bank is not None,
        calib=_calibration(model),
        calibration_stale=model.stale,
        fit=None if model.bank is None else _fit_facts(model.bank),
        datasets=_classes(datasets.list(key)),
    )


@router.get("/recipes", summary="All recipes and their models", **INSPECT)
def recipes(request: Request, recipes: RecipesOf) -> RecipesAnswer:
    """List the recipes. A recipe never falls back to another one's artefacts."""
    contents = recipes.contents()
    return RecipesAnswer(
        recipes=[RecipeAnswer(recipe_id=name, models=_models(keys)) for name, keys in contents.items()],
        request_id=request.state.request_id,
    )


@router.post("/recipes/copy", summary="Make a new recipe from an old one", status_code=201, **ADMIN)
def copy_recipe(request: Request, recipes: RecipesOf, body: RecipeCopyBody) -> RecipeCopyAnswer:
    """Copy a recipe with its memories, calibrations and images; the new one is there completely, or not at all."""
    models = _models(recipes.copy(body.source, body.target))
    return RecipeCopyAnswer(recipe_id=checked_recipe(body.target), models=models, request_id=request.state.request_id)


def _models(keys: list[ModelKey]) -> list[RecipeModel]:
    return [RecipeModel(role_id=key.role_id, roi_id=key.roi_id, model_key=key.model_key) for key in keys]


def _calibration(model: LoadedModel) -> CalibrationFacts | None:
    calibration: Calibration | None = model.calibration
    return None if calibration is None else CalibrationFacts(**calibration.to_fields())


def _fit_facts(bank: MemoryBank) -> FitFacts:
    return FitFacts(
        n_ok_total=len(bank.image_digests),
        n_parts=bank.n_parts,
        n_embeddings=bank.n_embeddings,
        coreset_size=len(bank.vectors),
        coreset_rate=bank.options.coreset_rate,
        token_shape=bank.placement.grid_hw,
        image_width=bank.placement.image_hw[1],
        image_height=bank.placement.image_hw[0],
        mm_per_px=bank.mm_per_px,
        cell_mm=bank.placement.cell_mm(bank.mm_per_px),
        extractor_id=bank.extractor_id,
        k=bank.options.k,
        seed=bank.options.seed,
        shape=None if bank.shape is None else dict(bank.shape),
        checksum=bank.checksum,
    )


def _classes(listed: dict[Label, list[StoredImage]]) -> dict[Label, ClassSummary]:
    return {label: ClassSummary(count=len(images)) for label, images in listed.items()}
