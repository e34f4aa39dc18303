"""The end of a service: what has begun is finished, and nothing new is begun."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.errors import ShuttingDown
from backend.serving.hosts import READING

_READ_ON_S = 2.0


def expects_100(scope: Scope) -> bool:
    """Return whether a client waits with its body until it is asked for it."""
    return Headers(scope=scope).get("Expect", "").strip().lower() == "100-continue"


@dataclass
class Gate:
    """Whether the service is about to end, and how many requests have begun and are not answered yet."""

    stopping: bool = False
    in_flight: int = 0


class Draining:
    """Counts the requests under way; once the service is stopping, answers only those that change nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gate: Gate = scope["app"].state.gate
        counted = not gate.stopping  # later ones are not: whoever keeps asking must not put off the end

        async def send_and_close(message: Message) -> None:
            # A client that keeps its connection would keep asking here, and not find the service that follows.
            if gate.stopping and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        if gate.stopping and scope["method"] not in READING:
            if not expects_100(scope):  # else nothing comes until it is asked for
                await _read_on(receive)
            raise ShuttingDown("The service is stopping. Send the request again to the one that follows.")
        gate.in_flight += counted
        try:
            await self._app(scope, receive, send_and_close)
        finally:
            gate.in_flight -= counted


async def _read_on(receive: Receive) -> None:
    """Take in what a client is still sending: closed under it, the connection would lose the answer as well."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_READ_ON_S):
            while (await receive()).get("more_body", False):
                pass
