"""The application: parts, routes, middleware. Nothing is loaded, made or read before it starts up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from backend import __version__
from backend.api import audit, dataset_runs, datasets, inspection, jobs, models, monitoring
from backend.api.dependencies import documented_headers
from backend.api.http_errors import ERROR_RESPONSES, ErrorAnswers, install_error_handlers
from backend.maintenance.sweeping import Upkeep
from backend.services.inspection import InspectionService
from backend.serving.access import SECURITY_SCHEMES, AccessTable, KeyCheck
from backend.serving.access_log import AccessLog
from backend.serving.draining import Draining, Gate
from backend.serving.logs import json_lines
from backend.serving.metrics import Metrics
from backend.serving.middleware import BodyLimit, Cors, HeadAsGet, RequestIds
from backend.serving.time_limits import TimeLimits
from backend.settings import Settings
from backend.wiring import (
    build_api_keys,
    build_audit,
    build_body_budget,
    build_datasets,
    build_jobs,
    build_recipes,
    build_service,
    check_requirements,
)

_ALL_METHODS = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"]
_THREADS_BESIDE_INSPECTIONS = 24  # fits, calibrations, listings


def create_app(settings: Settings | None = None, service: InspectionService | None = None) -> FastAPI:
    """Return the application.

    Args:
        settings: The settings; read from the environment at start-up by default.
        service: Takes the place of the one that the settings describe.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = app.state
        state.settings = settings or Settings()
        with json_lines(state.settings):
            state.api_keys = build_api_keys(state.settings)
            check_requirements(state.settings)
            state.service = service or build_service(state.settings)
            state.datasets = build_datasets(state.settings, state.service.store)
            state.recipes = build_recipes(state.settings, state.service.store)
            upkeep = Upkeep(state.service.store)
            state.audit = build_audit(state.settings)
            state.gate = Gate()
            state.metrics = Metrics()
            state.metrics.watch_in_flight(lambda: state.gate.in_flight)
            state.jobs = build_jobs(state.settings)
            state.body_budget = build_body_budget(state.settings)
            # Every waiting inspection holds a thread; the queue must be what bounds them, with its 503.
            threads = state.settings.queue_length + _THREADS_BESIDE_INSPECTIONS
            anyio.to_thread.current_default_thread_limiter().total_tokens = threads
            state.service.start()
            upkeep.start()
            yield
            state.gate.stopping = True
            for close in (upkeep.close, state.jobs.close, state.service.close, state.audit.close):
                # A job's step that does not end must not keep the service from ending: it writes whole files or none.
                with anyio.move_on_after(state.settings.shutdown_s):
                    await anyio.to_thread.run_sync(close, abandon_on_cancel=True)

    # Not FastAPI itself: its pages at /docs and /redoc load their scripts from the internet, which a line PC has not.
    app = FastAPIOffline(
        title="ROI inspector",
        version=__version__,
        description="Learns from good images of a region of interest, and finds what is not normal.",
        lifespan=lifespan,
        responses=cast("dict[int | str, dict[str, Any]]", ERROR_RESPONSES),
        generate_unique_id_function=lambda route: route.name,  # what a generated client calls its methods
    )
    app.router.routes.extend([*_options_routes(app.router)])  # of /docs and /openapi.json
    rooms = (inspection, models, datasets, dataset_runs, jobs, audit, monitoring)
    for room in rooms:
        app.include_router(room.router, dependencies=[Depends(documented_headers)])
        app.router.routes.extend(_options_routes(room.router))
    app.add_middleware(BodyLimit)
    app.add_middleware(TimeLimits)
    app.add_middleware(Draining)
    app.add_middleware(KeyCheck, table=AccessTable(route for room in rooms for route in room.router.routes))
    app.add_middleware(ErrorAnswers)
    app.add_middleware(Cors)
    app.add_middleware(AccessLog)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestIds)  # the outermost
    install_error_handlers(app)
    _declare_keys(app)
    return app


def _declare_keys(app: FastAPI) -> None:
    """Let the document say how a key is sent, in the words that the page at /docs has a button for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["securitySchemes"] = SECURITY_SCHEMES
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _options_routes(router: APIRouter) -> Iterator[Route]:
    """Answer OPTIONS on every path with the methods that it knows: clients probe an endpoint so.

    And refuse every other method that the path does not know with the same list; Starlette would name one of them.
    """
    methods_of: dict[str, set[str]] = {}
    for route in router.routes:
        if isinstance(route, Route):
            methods_of.setdefault(route.path, {"OPTIONS"}).update(route.methods or ())
    for path, methods in methods_of.items():
        methods.update({"HEAD"} if "GET" in methods else ())
        yield Route(path, _allowing(", ".join(sorted(methods))), methods=_ALL_METHODS, include_in_schema=False)


def _allowing(methods: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        if request.method != "OPTIONS":
            raise HTTPException(405, headers={"Allow": methods})
        return Response(status_code=204, headers={"Allow": methods})

    return answer


app = create_app()
