"""The page's way to the service: the public HTTP interface, called in this process as the browser would call it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from backend.serving.sessions import TOKEN_HEADER, Session

_FROM_THE_BROWSER = (b"host", b"cookie", b"authorization", b"x-api-key", b"accept-language", b"user-agent")


class CallFailed(Exception):
    """The service refused a call of the page.

    Attributes:
        status: Status of the answer.
        sentence: What went wrong and what to do, as the service put it.
        code: The error's stable code.
        details: Machine-readable facts.
    """

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.sentence = str(body.get("error", ""))
        self.code = str(body.get("code", "internal_error"))
        self.details: dict[str, Any] = dict(body.get("details") or {})
        super().__init__(self.sentence)


class PublicCalls:
    """Calls the application that a request came to, for whoever sent it: same host, address, key and recipe."""

    def __init__(self, request: Request, session: Session, recipe_id: str) -> None:
        outer = request.scope

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            # What the service knows of the caller's connection decides what it tells.
            same = {name: outer[name] for name in ("server", "client", "scheme", "root_path") if name in outer}
            path = outer.get("root_path", "") + scope["path"]
            await request.app({**scope, **same, "path": path, "raw_path": path.encode()}, receive, send)

        headers = [(name, value) for name, value in request.headers.raw if name in _FROM_THE_BROWSER]
        headers += [
            (b"x-request-id", request.state.request_id.encode()),
            (b"x-recipe-id", recipe_id.encode()),
            (TOKEN_HEADER.lower().encode(), session.token.encode()),
        ]
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://page",
            headers=headers,
            trust_env=False,
            timeout=None,
        )

    async def get(self, path: str, /, **query: Any) -> dict[str, Any]:
        """Return the JSON object that a GET answers; parameters that are None are left out.

        Raises:
            CallFailed: If the service refuses; so do all other methods here.
        """
        return _content(await self.ask("GET", path, params=_given(query)))

    async def delete(self, path: str, /, **query: Any) -> dict[str, Any]:
        """Return the JSON object that a DELETE answers."""
        return _content(await self.ask("DELETE", path, params=_given(query)))

    async def post(self, path: str, body: Mapping[str, Any] | None, *, in_background: bool = False) -> dict[str, Any]:
        """Return the JSON object that a POST of JSON, or of nothing, answers; ``in_background``: that of a job."""
        sent = {} if body is None else {"json": dict(body)}
        return _content(await self.ask("POST", path, headers=_prefer(in_background), **sent))

    async def post_form(
        self, path: str, fields: Mapping[str, Any], files: Any = None, *, in_background: bool = False
    ) -> dict[str, Any]:
        """Return the JSON object that a POST of a form answers; ``files`` as httpx takes them."""
        texts = {name: str(value) for name, value in _given(fields).items()}
        sent: dict[str, Any] = {"data": texts, "files": files} if files else {"files": _parts(texts)}
        return _content(await self.ask("POST", path, headers=_prefer(in_background), **sent))

    async def ask(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """Return an answer of the status 2xx, whatever it holds."""
        answer = await self._client.request(method, path, **sent)
        if not answer.is_success:
            try:
                body = answer.json()
            except ValueError:
                body = {}
            raise CallFailed(answer.status_code, body if isinstance(body, dict) else {})
        return answer


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _parts(texts: Mapping[str, str]) -> list[tuple[str, tuple[None, str]]]:
    """Return texts as the parts of a multipart form that has no file."""
    return [(name, (None, text)) for name, text in texts.items()]


def _prefer(in_background: bool) -> dict[str, str]:
    return {"Prefer": "respond-async"} if in_background else {}


def _content(answer: httpx.Response) -> dict[str, Any]:
    content: dict[str, Any] = answer.json()
    return content
