"""Sessions of browsers: who signed in with a key, and the token that proves that a page of this service sent a form.

A session lives in the memory of the process: a restart ends it. The token of a session is a keyed hash of its id, so
that visitors of a service without keys have one too, and nothing is kept of them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.serving.api_keys import ApiRole

TOKEN_HEADER = "X-CSRF-Token"
SESSION_S = 12 * 3600
"""How long a session holds, s: a shift, and what comes before and after it."""
MAX_SESSIONS = 256


@dataclass(frozen=True, kw_only=True)
class Session:
    """A browser: its id, the token of its forms, and the role of the key that it signed in with, None without."""

    session_id: str
    token: str
    role: ApiRole | None = None


class Sessions:
    """The sessions of one process; the oldest ones end when there are too many."""

    def __init__(self, *, lifetime_s: float = SESSION_S, most: int = MAX_SESSIONS) -> None:
        self._lifetime_s = lifetime_s
        self._most = most
        self._secret = secrets.token_bytes(32)
        self._signed_in: dict[str, tuple[ApiRole, float]] = {}  # role, end on the monotonic clock; the oldest first

    def visit(self, session_id: str | None = None) -> Session:
        """Return a session by the id of a cookie, or a new one without a role."""
        session_id = session_id or secrets.token_urlsafe(32)
        token = hmac.new(self._secret, session_id.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
        role, ends_s = self._signed_in.get(session_id, (None, 0.0))
        return Session(session_id=session_id, token=token, role=role if time.monotonic() < ends_s else None)

    def sign_in(self, role: ApiRole) -> Session:
        """Return a new session of somebody who has shown a key of that role."""
        session_id = secrets.token_urlsafe(32)
        while len(self._signed_in) >= self._most:
            self._signed_in.pop(next(iter(self._signed_in)), None)
        self._signed_in[session_id] = role, time.monotonic() + self._lifetime_s
        return self.visit(session_id)

    def sign_out(self, session_id: str) -> None:
        """End a session; one that there is not is no error."""
        self._signed_in.pop(session_id, None)


class SessionCookie:
    """Finds the session that a request's cookie names; ``KeyCheck`` decides what it is worth."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            sessions: Sessions = scope["app"].state.sessions
            headers = dict(scope["headers"])
            session_id = HTTPConnection(scope).cookies.get(cookie_name(headers))
            scope["state"]["session"] = sessions.visit(session_id) if session_id else None
        await self._app(scope, receive, send)


def cookie_name(headers: Mapping[bytes, bytes]) -> str:
    """Return the name of the session's cookie: browsers send a host's cookies to every port of it."""
    port = headers.get(b"host", b"").decode("latin-1").rpartition(":")[2]
    return f"roi_session_{port}" if port.isdecimal() and port.isascii() else "roi_session"


def is_token_of(session: Session | None, sent: str | None) -> bool:
    """Return whether a token is that of a session; takes as long whatever was sent."""
    return session is not None and hmac.compare_digest(session.token.encode(), (sent or "").encode("utf-8", "replace"))
