"""What happens to every request around its route: an id, headers for browsers, a line in the log, CORS."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.artifacts.model_key import DEFAULT_RECIPE, ModelKey, checked_recipe
from backend.errors import ReservedRecipe
from backend.serving.access import PAGE
from backend.serving.draining import expects_100
from backend.serving.logs import REQUEST_ID

_log = logging.getLogger("backend.requests")

REQUEST_ID_HEADER = "X-Request-Id"
RECIPE_ID_HEADER = "X-Recipe-Id"
_USABLE_ID = re.compile(r"[!-~]{1,128}")

_POLLED = frozenset(
    {"/health", "/metrics", "/overview", "/jobs", "/ui/overview/cards", "/ui/system/jobs", "/ui/jobs/{job_id}"}
)
_STATIC = "/static-offline-docs/"
_PAGES = ("/docs", "/redoc")
_UI_STATIC = "/ui/static/"
_SAFETY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_ANSWER_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# The pages of the documentation begin with a script of their own, and ReDoc runs a worker and draws its logo.
_PAGE_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)

# The engineer's page: scripts, styles and calls of this service alone, nothing inline.
_UI_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class RequestFrame:
    """Gives a request an id, the client's where it sent a usable one, its answer headers, and the log a line of it.

    Answers HEAD as GET, without the body: monitors and proxies ask so (RFC 9110, 9.3.2). An address with a slash at its
    end is the one without: redirected, a client would lose its body or its key. Where a client waits to be asked for
    its body (``Expect: 100-continue``) and is answered without, the connection ends: nobody could say whether what
    comes next is that body or another request (RFC 9110, 10.1.1).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent = headers.get(REQUEST_ID_HEADER, "")
        request_id = sent if _USABLE_ID.fullmatch(sent) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)  # for what is logged on the way
        # What an error answers that comes before a route has looked at the recipe.
        recipe_id = _named_recipe(headers.get(RECIPE_ID_HEADER, ""))
        scope.setdefault("state", {}).update(request_id=request_id, recipe_id=recipe_id)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy: the server still sees HEAD, and sends no body
        if scope["path"].endswith("/") and scope["path"] != "/":
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
            if scope.get("raw_path"):
                scope["raw_path"] = scope["raw_path"].rstrip(b"/") or b"/"
        waits = expects_100(scope)
        safety = _safety_headers(scope)  # now: a mounted application changes the path
        started_s, status = time.perf_counter(), 0

        async def receive_asked() -> Message:
            nonlocal waits
            waits = False
            return await receive()

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).extend(safety)
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                if waits:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive_asked, send_framed)
        finally:
            _log_request(scope, status, time.perf_counter() - started_s)


class Cors:
    """Lets pages of ``settings.cors_origins`` call; without any, no page of another origin may."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        app = self._app
        # The settings are known from start-up on, middleware is put together before.
        if scope["type"] == "http" and (origins := scope["app"].state.settings.cors_origins):
            app = CORSMiddleware(
                app,
                allow_origins=origins,
                allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
                allow_headers=["*"],
                # A page of the internet that calls into this network: only one that is named, not whichever there is.
                allow_private_network="*" not in origins,
                expose_headers=[REQUEST_ID_HEADER],
            )
        await app(scope, receive, send)


def _log_request(scope: Scope, status: int, elapsed_s: float) -> None:
    # The template of the address, not what was asked for: a query may hold what is nobody's business.
    route = getattr(scope.get("route"), "path", None)
    if status == 0 or status >= 500:  # 0: cut off without an answer
        level = logging.ERROR
    elif status >= 400:
        level = logging.WARNING
    else:
        level = logging.DEBUG if route in _POLLED else logging.INFO
    state = scope["state"]
    fields: dict[str, Any] = {
        "request_id": state["request_id"],
        "method": scope["method"],
        "route": route,
        "status": status,
        "code": state.get("error_code"),
        "duration_ms": round(elapsed_s * 1e3, 3),
        "client": (scope.get("client") or (None,))[0],
        "caller": state.get("caller"),
        "recipe_id": state["recipe_id"],
    }
    key: ModelKey | None = state.get("model")
    if key is not None:
        fields.update(recipe_id=key.recipe_id, role_id=key.role_id, roi_id=key.roi_id, model_key=key.model_key)
    _log.log(level, "request", extra=fields | state.get("found", {}))


def _safety_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if path.startswith(_STATIC):
        return _SAFETY  # the same for every installation; a browser may keep it
    if path.startswith(_UI_STATIC):
        return [*_SAFETY, (b"content-security-policy", _ANSWER_POLICY)]  # kept too: a digest is in the address
    if PAGE.fullmatch(path):
        # Without a referrer browsers do not say either where the forms of the page come from.
        safety = [(name, b"same-origin" if name == b"referrer-policy" else value) for name, value in _SAFETY]
        return [*safety, (b"cache-control", b"no-store"), (b"content-security-policy", _UI_POLICY)]
    policy = _PAGE_POLICY if path.startswith(_PAGES) else _ANSWER_POLICY
    return [*_SAFETY, (b"cache-control", b"no-store"), (b"content-security-policy", policy)]


def _named_recipe(sent: str) -> str:
    try:
        return checked_recipe(sent or DEFAULT_RECIPE)
    except ReservedRecipe:
        return DEFAULT_RECIPE
