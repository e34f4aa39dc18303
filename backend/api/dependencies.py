"""What routes ask for: the parts of the service, the model that a request names, an answer now or later."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from backend.api.fields import (
    KEY_TEXT,
    RECIPE_TEXT,
    ROI_TEXT,
    ROLE_TEXT,
    ModelKeyForm,
    RecipeIdForm,
    RoiIdForm,
    RoleIdForm,
)
from backend.artifacts.model_key import DEFAULT_RECIPE, MAX_ID_CHARS, ModelKey, checked_recipe
from backend.deadlines import end_if_late
from backend.errors import TooLarge
from backend.memory_bank.coreset import Progress
from backend.services.datasets import Datasets
from backend.services.inspection import InspectionService
from backend.services.jobs import Jobs
from backend.services.recipes import Recipes
from backend.serving.draining import Gate
from backend.serving.limits import HeldBody
from backend.serving.metrics import Metrics
from backend.settings import Settings

AnswerT = TypeVar("AnswerT", bound=BaseModel)


def _part(name: str) -> Callable[[Request], Awaitable[Any]]:
    # A coroutine, though it waits for nothing: FastAPI runs a plain function on a thread, and `/health` would wait for
    # one.
    async def part(request: Request) -> Any:
        return getattr(request.app.state, name)

    return part


GateOf = Annotated[Gate, Depends(_part("gate"))]
ServiceOf = Annotated[InspectionService, Depends(_part("service"))]
DatasetsOf = Annotated[Datasets, Depends(_part("datasets"))]
RecipesOf = Annotated[Recipes, Depends(_part("recipes"))]
JobsOf = Annotated[Jobs, Depends(_part("jobs"))]
MetricsOf = Annotated[Metrics, Depends(_part("metrics"))]
SettingsOf = Annotated[Settings, Depends(_part("settings"))]


async def _prefers_async(
    request: Request,
    prefer: Annotated[
        str | None,
        Header(
            alias="Prefer",
            description="`respond-async`: answer 202 at once and work in the background; see GET /jobs/{job_id}.",
            examples=["respond-async"],
        ),
    ] = None,
) -> bool:
    """Return whether a request holds the preference respond-async, in any of its Prefer headers (RFC 7240)."""
    if prefer is None:
        return False
    unquoted = re.sub(r'"[^"]*"', "", ",".join(request.headers.getlist("Prefer")))
    return any(each.partition(";")[0].strip().lower() == "respond-async" for each in unquoted.split(","))


PrefersAsync = Annotated[bool, Depends(_prefers_async)]


async def documented_headers(
    x_request_id: Annotated[
        str | None,
        Header(
            description="Any id of up to 128 visible characters; it comes back.",
            examples=["8f0c6d0e-6d2e-4f0a-9a53-0d5f5c3f6b11"],
        ),
    ] = None,
    x_recipe_id: Annotated[
        str | None, Header(description="The recipe, where no field recipe_id names one.", examples=["default"])
    ] = None,
) -> None:
    """Declare the headers that every route knows, for the document; middleware and ``model_key_of`` read them."""


def model_key_of(request: Request, role_id: str, roi_id: str, model_key: str | None, recipe_id: str | None) -> ModelKey:
    """Return the model that a request names: the field goes before the header, the header before the default."""
    recipe = checked_recipe(recipe_id or request.headers.get("X-Recipe-Id") or DEFAULT_RECIPE)
    request.state.recipe_id = recipe
    key = ModelKey(recipe_id=recipe, role_id=role_id, roi_id=roi_id, model_key=model_key or "")
    request.state.model = key  # for the log
    return key


async def _key_of_form(
    request: Request,
    role_id: RoleIdForm,
    roi_id: RoiIdForm,
    model_key: ModelKeyForm = None,
    recipe_id: RecipeIdForm = None,
) -> ModelKey:
    return model_key_of(request, role_id, roi_id, model_key, recipe_id)


async def _key_of_query(
    request: Request,
    role_id: Annotated[
        str, Query(min_length=1, max_length=MAX_ID_CHARS, description=ROLE_TEXT, examples=["Inspection"])
    ],
    roi_id: Annotated[
        str, Query(min_length=1, max_length=MAX_ID_CHARS, description=ROI_TEXT, examples=["inspection-1"])
    ],
    model_key: Annotated[
        str | None, Query(max_length=MAX_ID_CHARS, description=KEY_TEXT, examples=["inspection-1"])
    ] = None,
    recipe_id: Annotated[
        str | None, Query(max_length=MAX_ID_CHARS, description=RECIPE_TEXT, examples=["default"])
    ] = None,
) -> ModelKey:
    return model_key_of(request, role_id, roi_id, model_key, recipe_id)


KeyOfForm = Annotated[ModelKey, Depends(_key_of_form)]
KeyOfQuery = Annotated[ModelKey, Depends(_key_of_query)]


def identity(request: Request, key: ModelKey) -> dict[str, str]:
    """Return the fields that every answer about a model carries."""
    return {
        "role_id": key.role_id,
        "roi_id": key.roi_id,
        "model_key": key.model_key,
        "recipe_id": key.recipe_id,
        "request_id": request.state.request_id,
    }


def check_count(n_images: int, settings: Settings) -> None:
    """Raise TooLarge if a call brings more images than it may."""
    if n_images > settings.max_images:
        raise TooLarge(
            f"{n_images} images in one call; at most {settings.max_images} are allowed. Send them in several calls.",
            details={"n_images": n_images, "max_images": settings.max_images},
        )


def now_or_later(
    request: Request, jobs: Jobs, prefers_async: bool, kind: str, call: Callable[[Progress], AnswerT]
) -> AnswerT | JSONResponse:
    """Return the call's answer, or start it as a job and return 202 where the client prefers that."""
    if not prefers_async:
        return call(end_if_late)
    held: HeldBody = request.state.held_body
    # From here on the upload is the job's, which may end before this line does.
    job = jobs.start(kind, lambda progress: call(progress).model_dump(mode="json"), ended=held.release)
    held.is_handed_over = True
    body = {"job_id": job.job_id, "kind": kind, "state": job.state, "status_url": f"/jobs/{job.job_id}"}
    body["request_id"] = request.state.request_id
    headers = {"Location": f"/jobs/{job.job_id}", "Preference-Applied": "respond-async"}
    return JSONResponse(body, 202, headers)
