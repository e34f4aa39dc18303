"""A client for a service on this machine, by Python's plain HTTP client, which adds the least of its own to a time.

The demo, the benchmarks, the proofs in ``reliability/`` and the tests all send their requests through it.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Self
from urllib.parse import quote, urlencode

import httpx

_IDLE_S = 3.0


class CallCutOff(ConnectionError):
    """No whole answer came: whether the call did anything is not known."""


class CallFailed(Exception):
    """A call was answered with another status than it should be."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call was answered with; ``path`` is without its query."""

    path: str
    status: int
    headers: Message = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def ok(self, status: int = 200) -> Any:
        """Return the body as JSON.

        Raises:
            CallFailed: If the status is another one; says what the service says.
        """
        if self.status != status:
            raise CallFailed(str(self))
        return self.json

    def __str__(self) -> str:
        try:
            said = self.json.get("error")
        except (ValueError, AttributeError):
            said = None
        return f"{self.path} answered {self.status}: {said or self.body[:300].decode(errors='replace')}"


@dataclass(frozen=True, kw_only=True)
class Form:
    """A multipart request, put together before the clock starts."""

    path: str
    body: bytes
    content_type: str


def form(path: str, fields: Mapping[str, object], field_name: str, files: Iterable[tuple[str, bytes]]) -> Form:
    """Return a multipart request.

    Args:
        path: What is called.
        fields: Plain fields; those that are None are left out.
        field_name: Of the files.
        files: File name and content of each.
    """
    data = {name: str(value) for name, value in fields.items() if value is not None}
    request = httpx.Request("POST", "http://line-pc/", data=data, files=[(field_name, file) for file in files])
    return Form(path=path, body=request.read(), content_type=request.headers["Content-Type"])


def with_query(path: str, query: Mapping[str, object]) -> str:
    """Return a path with its query, percent-encoded."""
    return f"{path}?{urlencode(query, quote_via=quote)}" if query else path


class Client:
    """One client with one connection to a port of this machine, kept open; not to be shared between threads."""

    def __init__(self, port: int, *, timeout_s: float = 60.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self._used_s = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str, **query: object) -> Answer:
        """Return the answer to a GET; raises as ``ask``."""
        return self.ask("GET", with_query(path, query))

    def delete(self, path: str, **query: object) -> Answer:
        """Return the answer to a DELETE; raises as ``ask``."""
        return self.ask("DELETE", with_query(path, query))

    def send(self, form: Form, **headers: str) -> Answer:
        """Return the answer to a form; raises as ``ask``."""
        return self.ask("POST", form.path, form.body, {"Content-Type": form.content_type, **headers})

    def post(self, path: str, value: object) -> Answer:
        """Return the answer to a JSON body; raises as ``ask``."""
        return self.ask("POST", path, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer to any request.

        Raises:
            CallCutOff: If there is none.
        """
        if time.perf_counter() - self._used_s > _IDLE_S:
            self._connection.close()  # uvicorn closes a connection after 5 s without a request; this one opens anew
        plain_path = path.partition("?")[0]
        try:
            self._connection.request(method, path, body, headers or {})
            response = self._connection.getresponse()
            answer = Answer(path=plain_path, status=response.status, headers=response.headers, body=response.read())
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise CallCutOff(f"{method} {plain_path}: {type(error).__name__}: {error}") from error
        self._used_s = time.perf_counter()
        return answer
