"""Clients over real sockets that report every status, and every call that was cut off."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from benchmarks.servers import Form

_IDLE_S = 3.0


class CallCutOff(Exception):
    """No whole answer came: whether the call did anything is not known."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A status and a body."""

    status: int
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"status {self.status}: {self.body[:300].decode(errors='replace')}"


class Client:
    """One client with one connection, by Python's plain HTTP client, which adds the least of its own.

    Args:
        port: On the loopback interface.
        timeout_s: Longest wait for a byte.
    """

    def __init__(self, port: int, *, timeout_s: float = 60.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self._used_s = time.perf_counter()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, path: str, **query: object) -> Answer:
        """Return the answer to a GET.

        Raises:
            CallCutOff: If there is none.
        """
        return self.ask("GET", f"{path}?{urlencode(query)}" if query else path)

    def delete(self, path: str, **query: object) -> Answer:
        """Return the answer to a DELETE; raises as ``get``."""
        return self.ask("DELETE", f"{path}?{urlencode(query)}" if query else path)

    def send(self, form: Form, **headers: str) -> Answer:
        """Return the answer to a form; raises as ``get``."""
        return self.ask("POST", form.path, form.body, {"Content-Type": form.content_type, **headers})

    def post(self, path: str, value: Mapping[str, Any]) -> Answer:
        """Return the answer to a JSON body; raises as ``get``."""
        return self.ask("POST", path, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer to any request; raises as ``get``."""
        if time.perf_counter() - self._used_s > _IDLE_S:
            self._connection.close()  # uvicorn closes a connection after 5 s without a request; this one opens anew
        try:
            self._connection.request(method, path, body, dict(headers or {}))
            response = self._connection.getresponse()
            answer = Answer(status=response.status, body=response.read())
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise CallCutOff(f"{method} {path.partition('?')[0]}: {type(error).__name__}: {error}") from error
        self._used_s = time.perf_counter()
        return answer
