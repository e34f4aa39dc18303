"""What happens to every request before a route sees it: an id, headers for browsers, and a limit on the body."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.artifacts.model_key import DEFAULT_RECIPE, checked_recipe
from backend.errors import QueueFull, ReservedRecipe
from backend.serving.body_budget import HeldBody
from backend.serving.logs import REQUEST_ID

REQUEST_ID_HEADER = "X-Request-Id"
RECIPE_ID_HEADER = "X-Recipe-Id"
_NO_ROOM = "Other uploads take all the room that there is for them (BDI_MAX_HELD_MB). Send this one again in a while."
_USABLE_ID = re.compile(r"[!-~]{1,128}")

_STATIC = "/static-offline-docs/"
_PAGES = ("/docs", "/redoc")
_SAFETY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
_OF_ANSWERS = [
    *_SAFETY,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
# The pages of the documentation begin with a script of their own, and ReDoc runs a worker and draws its logo.
_OF_PAGES = [
    *_SAFETY,
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'",
    ),
]


class RequestIds:
    """Gives every request an id, the client's where it sent a usable one, and echoes it beside what browsers obey."""

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
        # What an error answers that comes before a route has looked at the recipe.
        recipe_id = _named_recipe(headers.get(RECIPE_ID_HEADER, ""))
        scope.setdefault("state", {}).update(request_id=request_id, recipe_id=recipe_id)
        REQUEST_ID.set(request_id)  # for what is logged on the way
        safety = _safety_headers(scope)  # now: a mounted application changes the path

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).extend(safety)
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class Cors:
    """Lets pages of ``settings.cors_origins`` call; without any, no page of another origin may."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._with_cors: CORSMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        # The settings are known from start-up on, middleware is put together before.
        origins = scope["app"].state.settings.cors_origins if scope["type"] == "http" else ()
        if not origins:
            await self._app(scope, receive, send)
            return
        if self._with_cors is None:
            self._with_cors = CORSMiddleware(
                self._app,
                allow_origins=origins,
                allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
                allow_headers=["*"],
                expose_headers=[REQUEST_ID_HEADER],
            )
        await self._with_cors(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET, without the body: monitors and proxies ask so (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)


class BodyLimit:
    """Refuses a body over ``settings.max_body_mb``, or that there is no room for, while it streams in, not after."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_mb = scope["app"].state.settings.max_body_mb
        announced = Headers(scope=scope).get("content-length", "0")
        too_much = announced.isdigit() and int(announced) > limit_mb * 1_000_000
        received = 0
        held = scope["state"]["held_body"] = HeldBody(scope["app"].state.body_budget)
        has_room = too_much or not announced.isdigit() or held.grow_to(int(announced))

        async def receive_some() -> Message:
            nonlocal received, has_room
            message: Message = {} if too_much or not has_room else await receive()
            received += len(message.get("body", b""))
            # HTTPExceptions, because FastAPI turns any other error while it reads a body into a 400.
            if too_much or received > limit_mb * 1_000_000:
                raise HTTPException(413, f"The request is larger than {limit_mb} MB. Send fewer images in one call.")
            has_room = has_room and held.grow_to(received)
            if not has_room:
                raise HTTPException(503, _NO_ROOM, {"Retry-After": str(QueueFull.retry_after_s)})
            return message

        try:
            await self._app(scope, receive_some, send)
        finally:
            if not held.is_handed_over:
                held.release()


def _safety_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if path.startswith(_STATIC):
        return _SAFETY  # the same for every installation; a browser may keep it
    return _OF_PAGES if path.startswith(_PAGES) else _OF_ANSWERS


def _named_recipe(sent: str) -> str:
    try:
        return checked_recipe(sent or DEFAULT_RECIPE)
    except ReservedRecipe:
        return DEFAULT_RECIPE
