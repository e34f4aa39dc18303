"""A client for a service on this machine, by Python's plain HTTP client, which adds the least of its own to a time.

The demo, the benchmarks, the proofs in ``reliability/`` and the tests all send their requests through it.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

import httpx

_IDLE_S = 3.0


class CallCutOff(ConnectionError):
    """No whole answer came: whether the call did anything is not known."""


class CallFailed(Exception):
    """A call was answered with another status than it should be.

    Attributes:
        status: The status.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call was answered with.

    Attributes:
        path: What was called, without its query.
        status: HTTP status.
        headers: By name, in any case.
        body: As received.
    """

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
            raise CallFailed(self.status, str(self))
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


def fit_form(roi: Mapping[str, object], images: Iterable[tuple[str, bytes]], **fields: object) -> Form:
    """Return a request to learn good images (file name, content) of a ROI (``role_id``, ``roi_id``, ``mm_per_px``)."""
    return form("/fit_ok", {**roi, **fields}, "images", images)


def infer_form(roi: Mapping[str, object], image: tuple[str, bytes], **fields: object) -> Form:
    """Return a request to inspect an image; arguments as ``fit_form``."""
    return form("/infer", {**roi, **fields}, "image", [image])


def upload_form(roi: Mapping[str, object], label: str, images: Iterable[tuple[str, bytes]]) -> Form:
    """Return a request to keep images in a data set, ``ok`` or ``ng``; arguments as ``fit_form``."""
    return form(f"/datasets/{label}/upload", roi, "images", images)


def numbered(images: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Return PNG files with the names ``0.png``, ``1.png``, …"""
    return [(f"{number}.png", image) for number, image in enumerate(images)]


class Client:
    """One client with one connection that is kept open; not to be shared between threads.

    Args:
        port: On the loopback interface.
        timeout_s: Longest wait for a byte.
    """

    def __init__(self, port: int, *, timeout_s: float = 60.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self._used_s = time.perf_counter()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def get(self, path: str, **query: object) -> Answer:
        """Return the answer to a GET; raises as ``ask``."""
        return self.ask("GET", with_query(path, query))

    def delete(self, path: str, **query: object) -> Answer:
        """Return the answer to a DELETE; raises as ``ask``."""
        return self.ask("DELETE", with_query(path, query))

    def send(self, form: Form, **headers: str) -> Answer:
        """Return the answer to a form; raises as ``ask``."""
        return self.ask("POST", form.path, form.body, {"Content-Type": form.content_type, **headers})

    def post(self, path: str, value: object, **headers: str) -> Answer:
        """Return the answer to a JSON body; raises as ``ask``."""
        body = json.dumps(value, ensure_ascii=False).encode()
        return self.ask("POST", path, body, {"Content-Type": "application/json; charset=utf-8", **headers})

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer to any request.

        Raises:
            CallCutOff: If there is none.
        """
        if time.perf_counter() - self._used_s > _IDLE_S:
            self.close()  # uvicorn closes a connection after 5 s without a request; this one opens anew
        plain_path = path.partition("?")[0]
        try:
            self._connection.request(method, path, body, dict(headers or {}))
            response = self._connection.getresponse()
            answer = Answer(path=plain_path, status=response.status, headers=response.headers, body=response.read())
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise CallCutOff(f"{method} {plain_path}: {type(error).__name__}: {error}") from error
        self._used_s = time.perf_counter()
        return answer


def with_query(path: str, query: Mapping[str, object]) -> str:
    """Return a path with its query, percent-encoded."""
    text = urlencode({name: str(value) for name, value in query.items()}, quote_via=quote)
    return f"{path}?{text}" if query else path
