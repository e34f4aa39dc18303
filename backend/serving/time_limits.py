"""How long a request may take, and an upload may pause."""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.deadlines import DEADLINE_S


class TimeLimits:
    """Sets a request's deadline, and refuses a body that stalls while it stalls.

    A server has no other way to be rid of clients that begin an upload and fall silent: each holds a connection and
    what it has sent so far.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        settings = scope["app"].state.settings
        deadline_s = time.monotonic() + settings.request_timeout_s
        DEADLINE_S.set(deadline_s)  # for this task and the threads that work for it
        more_body = True

        async def receive_in_time() -> Message:
            nonlocal more_body
            if not more_body:  # what comes now is the client's leave, which has no hurry
                return await receive()
            limit_s = min(settings.body_timeout_s, max(0.0, deadline_s - time.monotonic()))
            try:
                async with asyncio.timeout(limit_s):
                    message = await receive()
            except TimeoutError:
                # An HTTPException, because FastAPI turns any other error while it reads a body into a 400.
                raise HTTPException(
                    408,
                    f"The upload paused for {limit_s:.3g} s, or took too long in all. Check the network and send it "
                    "again.",
                    {"Connection": "close"},
                ) from None
            more_body = message["type"] == "http.request" and message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time, send)
