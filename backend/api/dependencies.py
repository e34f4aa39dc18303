"""What routes ask for: the parts of the service, the model that a request names, an answer now or later."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Form, Header, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from backend.api.field_names import MAX_NAMED
from backend.api.fields import ModelKeyId, RecipeId, RoiId, RoleId
from backend.artifacts.job_files import JobRole
from backend.artifacts.model_key import DEFAULT_RECIPE, ModelKey, checked_recipe
from backend.deadlines import end_if_late
from backend.errors import InvalidInput, TooLarge
from backend.history.recorder import History
from backend.memory_bank.coreset import Progress
from backend.roi_mask import Shape, parse_shape, shape_fields, unread_entries
from backend.services.audit import Audit
from backend.services.datasets import Datasets
from backend.services.inspection import InspectionService
from backend.services.jobs import Jobs
from backend.services.overview import Overview
from backend.services.recipes import Recipes
from backend.services.storage_health import StorageHealth
from backend.services.trends import Trends
from backend.serving.draining import Gate
from backend.serving.limits import HeldBody
from backend.serving.metrics import Metrics
from backend.settings import Settings

AnswerT = TypeVar("AnswerT", bound=BaseModel)


def _part(name: str) -> Any:
    """Return the dependency on a part of the application."""

    # A coroutine, though it does not wait: FastAPI runs a plain function on a thread, and `/health` would wait for one.
    async def part(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(part)


AuditOf = Annotated[Audit, _part("audit")]
DatasetsOf = Annotated[Datasets, _part("datasets")]
GateOf = Annotated[Gate, _part("gate")]
HistoryOf = Annotated[History, _part("history")]
JobsOf = Annotated[Jobs, _part("jobs")]
MetricsOf = Annotated[Metrics, _part("metrics")]
OverviewOf = Annotated[Overview, _part("overview")]
RecipesOf = Annotated[Recipes, _part("recipes")]
ServiceOf = Annotated[InspectionService, _part("service")]
SettingsOf = Annotated[Settings, _part("settings")]
StorageHealthOf = Annotated[StorageHealth, _part("storage_health")]
TrendsOf = Annotated[Trends, _part("trends")]


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
    role_id: Annotated[RoleId, Form()],
    roi_id: Annotated[RoiId, Form()],
    model_key: Annotated[ModelKeyId, Form()] = None,
    recipe_id: Annotated[RecipeId, Form()] = None,
) -> ModelKey:
    return model_key_of(request, role_id, roi_id, model_key, recipe_id)


async def _key_of_query(
    request: Request,
    role_id: Annotated[RoleId, Query()],
    roi_id: Annotated[RoiId, Query()],
    model_key: Annotated[ModelKeyId, Query()] = None,
    recipe_id: Annotated[RecipeId, Query()] = None,
) -> ModelKey:
    return model_key_of(request, role_id, roi_id, model_key, recipe_id)


KeyOfForm = Annotated[ModelKey, Depends(_key_of_form)]
KeyOfQuery = Annotated[ModelKey, Depends(_key_of_query)]


def shape_of(request: Request, text: str | None) -> Shape | None:
    """Return the shape of a form, and have the answer name what its JSON text holds in vain; see ``parse_shape``."""
    shape = parse_shape(text)
    request.state.ignored += [
        f"The entry {name[:64]!r} of shape (a {shape_fields(shape)['kind']}) is not read and has no effect."
        for name in unread_entries(text)[:MAX_NAMED]
        if shape is not None
    ]
    return shape


def identity(request: Request, key: ModelKey) -> dict[str, str]:
    """Return the fields that every answer about a model carries."""
    return {**asdict(key), "request_id": request.state.request_id}


def check_uploads(n_images: int, field: str, n_values: int, settings: Settings) -> None:
    """Raise TooLarge if a call brings more images than it may, InvalidInput if a field has values for some of them."""
    if n_images > settings.max_images:
        raise TooLarge(
            f"{n_images} images in one call; at most {settings.max_images} are allowed. Send them in several calls.",
            details={"n_images": n_images, "max_images": settings.max_images},
        )
    if n_values not in (0, n_images):
        raise InvalidInput(
            f"{n_values} {field} fields for {n_images} images. Send one for each image, or none.",
            details={"field": field},
        )


class _NowOrLater(Protocol):
    def __call__(self, kind: str, call: Callable[[Progress], AnswerT]) -> AnswerT | JSONResponse: ...


async def _now_or_later(
    request: Request,
    jobs: JobsOf,
    prefer: Annotated[
        str | None,
        Header(
            alias="Prefer",
            description="`respond-async`: answer 202 at once and work in the background; see GET /jobs/{job_id}.",
            examples=["respond-async"],
        ),
    ] = None,
) -> _NowOrLater:
    # The preference may stand in any of several Prefer headers, beside others (RFC 7240).
    unquoted = re.sub(r'"[^"]*"', "", ",".join(request.headers.getlist("Prefer"))) if prefer else ""
    prefers_async = "respond-async" in {each.partition(";")[0].strip().lower() for each in unquoted.split(",")}

    def _with_ignored(answer: BaseModel) -> dict[str, Any]:
        """Return an answer as JSON, with what the request holds in vain: nobody sees the 202 once the job is done."""
        content = answer.model_dump(mode="json")
        return content | {"warnings": [*content.get("warnings", []), *request.state.ignored]}

    def answer(kind: str, call: Callable[[Progress], AnswerT]) -> AnswerT | JSONResponse:
        if not prefers_async:
            return call(end_if_late)
        held: HeldBody = request.state.held_body
        # From here on the upload is the job's, which may end before this line does.
        role: JobRole = request.state.caller or "admin"  # without keys everybody is
        job = jobs.start(kind, lambda progress: _with_ignored(call(progress)), role=role, ended=held.release)
        held.is_handed_over = True
        status_url = f"/jobs/{job.job_id}"
        body = {"job_id": job.job_id, "kind": kind, "state": job.state, "status_url": status_url, "warnings": []}
        body["request_id"] = request.state.request_id
        return JSONResponse(body, 202, {"Location": status_url, "Preference-Applied": "respond-async"})

    return answer


NowOrLater = Annotated[_NowOrLater, Depends(_now_or_later)]
"""Called with a call's name and the call: returns its answer, or 202 for a job where the client prefers that."""
