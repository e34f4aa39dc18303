"""The application: parts, routes, middleware. Nothing is loaded, made or read before it starts up."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, cast

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

from backend import __version__
from backend.api import (
    audit,
    dataset_runs,
    datasets,
    history,
    inspection,
    jobs,
    models,
    monitoring,
    refitting,
    score_maps,
    scores,
    upkeep,
    versions,
)
from backend.api.dependencies import documented_headers
from backend.api.http_errors import ERROR_RESPONSES, ErrorAnswers, install_error_handlers
from backend.errors import StorageFailed
from backend.imaging.pixel_budget import IN_FLIGHT
from backend.maintenance.sweeping import Upkeep
from backend.services.inspection import InspectionService
from backend.services.overview import Overview
from backend.services.storage_health import StorageHealth
from backend.services.trends import Trends
from backend.serving.access import SECURITY_SCHEMES, KeyCheck
from backend.serving.connections import limit_connections
from backend.serving.draining import Draining, Gate
from backend.serving.guesses import KeyGuesses
from backend.serving.limits import RequestLimits
from backend.serving.logs import json_lines
from backend.serving.metrics import Metrics
from backend.serving.middleware import Cors, RequestFrame
from backend.serving.proxies import TrustedProxies
from backend.serving.sessions import SessionCookie, Sessions
from backend.settings import Settings, unknown_variables
from backend.ui.routes import ROUTES as PAGE_ROUTES
from backend.wiring import (
    build_api_keys,
    build_audit,
    build_body_budget,
    build_datasets,
    build_history,
    build_jobs,
    build_recipes,
    build_service,
    check_requirements,
    pixels_in_flight,
)

ROUTERS = tuple(
    module.router
    for module in (
        inspection,
        models,
        scores,
        score_maps,
        versions,
        datasets,
        dataset_runs,
        refitting,
        jobs,
        history,
        audit,
        upkeep,
        monitoring,
    )
)

_log = logging.getLogger(__name__)

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
        chosen = settings or Settings()
        with json_lines(chosen):
            async with _running(app, chosen, service):
                yield

    # Not FastAPI itself: its pages at /docs and /redoc load their scripts from the internet, which a line PC has not.
    app = FastAPIOffline(
        title="ROI inspector",
        version=__version__,
        description="Learns from good images of a region of interest, and finds what is not normal.",
        lifespan=lifespan,
        redirect_slashes=False,  # RequestFrame answers them
        middleware=[  # the outermost first
            Middleware(TrustedProxies),  # from here on the caller's address is his own
            Middleware(RequestFrame),  # an id and a line in the log for whatever comes of the request
            Middleware(Cors),  # also refusals must be readable for the pages that may call
            Middleware(ErrorAnswers),  # answers for what those below refuse
            Middleware(SessionCookie),  # a browser that has shown a key need not show it again
            # before anything of a body is read
            Middleware(KeyCheck, routes=[*(route for router in ROUTERS for route in router.routes), *PAGE_ROUTES]),
            Middleware(Draining),  # strangers are not counted as work under way
            Middleware(RequestLimits),  # innermost: it guards the body that the route reads
        ],
        responses=cast("dict[int | str, dict[str, Any]]", ERROR_RESPONSES),
        generate_unique_id_function=lambda route: route.name,  # what a generated client calls its methods
    )
    app.router.routes.extend([*_options_routes(app.router)])  # of /docs and /openapi.json
    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(documented_headers)])
        app.router.routes.extend(_options_routes(router))
    app.router.routes.extend(PAGE_ROUTES)
    install_error_handlers(app)
    _declare_keys(app)
    return app


@asynccontextmanager
async def _running(app: FastAPI, settings: Settings, service: InspectionService | None) -> AsyncIterator[None]:
    """Put the parts together and keep them running for as long as the ``with`` block lasts."""
    state = app.state
    limit_connections()
    state.settings = settings
    state.api_keys = build_api_keys(settings)
    state.guesses = KeyGuesses(state.api_keys)
    state.sessions = Sessions()
    check_requirements(settings)
    for name in unknown_variables():
        _log.warning("%s is set, but there is no such setting: it has no effect. See docs/configuration.md.", name)
    _log.info("the models folder is %s", settings.models_dir.absolute())
    IN_FLIGHT.max_pixels = pixels_in_flight(settings)
    state.service = service or build_service(settings)
    state.datasets = build_datasets(settings, state.service.store)
    state.recipes = build_recipes(settings, state.service.store)
    state.audit = build_audit(settings, state.service.store)
    state.storage_health = StorageHealth(state.service.store, state.audit)
    state.history = build_history(settings, state.service.store)
    state.trends = Trends(state.history)
    state.overview = Overview(state.service.store, state.recipes)
    state.jobs = build_jobs(settings, state.service.store)
    state.body_budget = build_body_budget(settings)
    state.gate = gate = Gate()
    state.metrics = Metrics(in_flight=lambda: gate.in_flight, history_dropped=lambda: state.history.dropped)
    upkeep = Upkeep(state.service.store)
    # Every waiting inspection holds a thread; the queue must be what bounds them, with its 503.
    anyio.to_thread.current_default_thread_limiter().total_tokens = settings.queue_length + _THREADS_BESIDE_INSPECTIONS
    with suppress(StorageFailed):  # every call says so
        await anyio.to_thread.run_sync(state.service.store.folder.adopt)
    state.service.start()
    upkeep.start()
    yield
    gate.stopping = True
    for close in (upkeep.close, state.jobs.close, state.service.close, state.audit.close, state.history.close):
        # A job's step that does not end must not keep the service from ending: it writes whole files or none.
        with anyio.move_on_after(settings.shutdown_s):
            await anyio.to_thread.run_sync(close, abandon_on_cancel=True)


def _declare_keys(app: FastAPI) -> None:
    """Add to the OpenAPI document how a key is sent; the page at /docs then has a button for it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["securitySchemes"] = SECURITY_SCHEMES
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _options_routes(router: APIRouter) -> Iterator[Route]:
    """Yield a route for each path that answers OPTIONS with its methods: clients probe an endpoint so.

    It also refuses the methods that the path does not know with the whole list; Starlette would name one of them.
    """
    methods_of: dict[str, set[str]] = {}
    for route in router.routes:
        if isinstance(route, Route):
            methods_of.setdefault(route.path, {"OPTIONS"}).update(route.methods or ())
    for path, methods in methods_of.items():
        methods.update({"HEAD"} if "GET" in methods else ())
        answer = partial(_allow, {"Allow": ", ".join(sorted(methods))})
        yield Route(path, answer, methods=_ALL_METHODS, include_in_schema=False)


def _allow(headers: dict[str, str], request: Request) -> Response:
    if request.method != "OPTIONS":
        raise HTTPException(405, headers=headers)
    return Response(status_code=204, headers=headers)


app = create_app()
