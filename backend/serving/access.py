"""Who may call which route: the marker beside each route, and the checks before a body is read."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.errors import Forbidden, Unauthorized
from backend.serving.api_keys import ApiRole
from backend.serving.hosts import READING, check_site, is_loopback
from backend.serving.sessions import TOKEN_HEADER, Session, is_token_of

_log = logging.getLogger(__name__)

Access = Literal["open", "inspect", "admin"]

SECURITY_SCHEMES: dict[str, Any] = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "Where BDI_API_KEYS is set."},
    "Bearer": {"type": "http", "scheme": "bearer", "description": "The same key, as `Authorization: Bearer`."},
}
DOCUMENTATION = re.compile(r"/(docs(/oauth2-redirect)?|redoc|openapi\.json|static-offline-docs/.*)")
"""Pages for a browser, which can send no header on its own: they take the key as the password that it asks for."""

PAGE = re.compile(r"/ui(/.*)?", re.DOTALL)
"""The engineer's page."""


def _marker(access: Access) -> dict[str, Any]:
    security: list[dict[str, list[str]]] = [] if access == "open" else [{name: []} for name in SECURITY_SCHEMES]
    return {"openapi_extra": {"security": security, "x-role": access}}


OPEN = _marker("open")
"""Everybody, key or not."""
INSPECT = _marker("inspect")
"""Inspections, and whatever only reads."""
ADMIN = _marker("admin")
"""Whatever writes, deletes or stops something."""


def access_of(route: BaseRoute) -> Access:
    """Return what a route's marker says; without one it needs ``admin``."""
    extra: dict[str, Any] = getattr(route, "openapi_extra", None) or {}
    return cast("Access", extra.get("x-role", "admin"))


def access_needed(routes: Iterable[BaseRoute], scope: Scope) -> Access:
    """Return what a request needs; an address that leads nowhere needs a key too, so that it says nothing."""
    found = (route for route in routes if route.matches(scope)[0] is Match.FULL)
    return next((access_of(route) for route in found), "inspect")


class KeyCheck:
    """Refuses a request whose key, host name or page does not allow it, before anything of its body is read."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes
        self._may_warn = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            await self._check(scope)
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        app_state, has_keys = scope["app"].state, bool(scope["app"].state.api_keys)
        scope["state"]["caller"] = None
        if has_keys:
            await self._check_key(scope)
        elif self._may_warn and not is_loopback((scope.get("server") or ("localhost",))[0]):
            self._may_warn = False
            warn_of_open_service()
        check_site(
            scope,
            allowed_hosts=app_state.settings.allowed_hosts,
            cors_origins=app_state.settings.cors_origins,
            has_keys=has_keys,
        )

    async def _check_key(self, scope: Scope) -> None:
        headers, needed = dict(scope["headers"]), access_needed(self._routes, scope)
        for_browser = DOCUMENTATION.fullmatch(_path(scope)) is not None
        secret = _secret_of(headers, for_browser)
        if secret is None:
            caller = _role_of_session(scope, headers)
        else:
            caller = await role_of_key(secret, scope, may_wait=needed != "open")
        scope["state"]["caller"] = caller
        if needed == "open":
            return
        if caller is None:
            scope["state"]["challenge"] = 'Basic realm="ROI inspector"' if for_browser else "Bearer"
            said = "This call needs an API key" if secret is None else "This API key is not known here"
            raise Unauthorized(f"{said}. Send one of the service's keys as X-API-Key, or as Authorization: Bearer.")
        if caller not in ("admin", needed):
            raise Forbidden("This call needs an API key of the role admin.")


def may_know_paths(request: HTTPConnection) -> bool:
    """Return whether a caller may know where files lie: an administrator, or somebody who sits at the machine."""
    if request.app.state.api_keys:
        return bool(request.state.caller == "admin")
    return is_loopback((request.scope.get("server") or ("localhost",))[0])


def warn_of_open_service() -> None:
    """Log what it means that other machines reach a service without keys."""
    _log.warning(
        "The service answers other machines and BDI_API_KEYS is not set: whoever is on this network can fit, delete "
        "and read images and recipes. Set BDI_API_KEYS, or bind to 127.0.0.1."
    )


async def role_of_key(secret: bytes, scope: Scope, *, may_wait: bool) -> ApiRole | None:
    """Return the role of a key, None where nobody knows it; later and later to an address that tries many.

    Raises:
        TooManyGuesses: If many of its tries wait already.
    """
    headers, guesses = dict(scope["headers"]), scope["app"].state.guesses
    address = str((scope.get("client") or ("",))[0])
    # A proxy that is not trusted calls from here for everybody.
    is_local = is_loopback(address) and not {b"x-forwarded-for", b"forwarded", b"via"} & headers.keys()
    role: ApiRole | None = await guesses.role_of(secret, address, is_local=is_local, may_wait=may_wait)
    return role


def _role_of_session(scope: Scope, headers: Mapping[bytes, bytes]) -> ApiRole | None:
    """Return the role that a browser has signed in with, which must prove that a page of ours wants a change."""
    session: Session | None = scope["state"].get("session")
    if session is None or session.role is None:
        return None
    # The page's own routes look for the token in their forms as well.
    if scope["method"] not in READING and not PAGE.fullmatch(_path(scope)):
        sent = headers.get(TOKEN_HEADER.lower().encode(), b"").decode("latin-1")
        if not is_token_of(session, sent):
            raise Forbidden("A browser that has signed in must send the header X-CSRF-Token of its page with a change.")
    return session.role


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _secret_of(headers: Mapping[bytes, bytes], for_browser: bool) -> bytes | None:
    if headers.get(b"x-api-key"):
        return headers[b"x-api-key"]
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip()
    # Only there: a browser sends a password that it knows along with any form, also with one of a foreign page.
    if for_browser and scheme.lower() == b"basic":
        try:
            return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return None
