"""One line in the log for each request: who asked what, what came of it, how long it took."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.artifacts.model_key import ModelKey

_log = logging.getLogger("backend.requests")

_ASKED_ALL_THE_TIME = frozenset({"/health", "/metrics"})


class AccessLog:
    """Logs each request once it is answered; what the route came to know of it lies in the request's state."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, status = time.perf_counter(), 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            # The template of the address, not what was asked for: a query may hold what is nobody's business.
            route = getattr(scope.get("route"), "path", None)
            level = _level(status, route)
            if _log.isEnabledFor(level):
                elapsed_ms = round((time.perf_counter() - started_s) * 1e3, 3)
                _log.log(level, "request", extra=_fields(scope, route, status, elapsed_ms))


def _level(status: int, route: str | None) -> int:
    if status == 0 or status >= 500:  # 0: cut off without an answer
        return logging.ERROR
    if status >= 400:
        return logging.WARNING
    return logging.DEBUG if route in _ASKED_ALL_THE_TIME else logging.INFO


def _fields(scope: Scope, route: str | None, status: int, elapsed_ms: float) -> dict[str, Any]:
    state = scope["state"]
    fields = {
        "request_id": state["request_id"],
        "method": scope["method"],
        "route": route,
        "status": status,
        "code": state.get("error_code"),
        "duration_ms": elapsed_ms,
        "client": (scope.get("client") or (None,))[0],
        "caller": state.get("caller"),
        "recipe_id": state["recipe_id"],
    }
    key: ModelKey | None = state.get("model")
    if key is not None:
        fields.update(recipe_id=key.recipe_id, role_id=key.role_id, roi_id=key.roi_id, model_key=key.model_key)
    fields.update(state.get("found", {}))
    return fields
