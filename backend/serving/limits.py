"""How large an upload may be, how long it may pause, how long its request may take, and what all uploads may hold."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.deadlines import DEADLINE_S
from backend.errors import QueueFull

SMALL_BYTES = 8_000_000
"""Bodies up to here may take all the room, larger ones leave some: for them inspections are not refused."""


@dataclass
class BodyBudget:
    """How much the bodies of one process may hold together, also those of background jobs that wait.

    Attributes:
        max_bytes: What large ones may hold.
        small_bytes: Uploads up to here may hold ``reserve_bytes`` more.
        reserve_bytes: Room that large ones leave.
        held: Bytes that are held now.
    """

    max_bytes: int
    small_bytes: int = SMALL_BYTES
    reserve_bytes: int = 0
    held: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class HeldBody:
    """What one request holds of the budget, until its call has ended: the request's, or that of the job it started.

    Attributes:
        budget: For all of them.
        taken: Bytes that are held.
        is_handed_over: True when a job holds it from now on, beyond the request's end.
    """

    budget: BodyBudget
    taken: int = 0
    is_handed_over: bool = False

    def grow_to(self, n_bytes: int) -> bool:
        """Hold so much in all; return False, and hold no more than before, if there is no room."""
        with self.budget.lock:
            more = max(0, n_bytes - self.taken)
            reserve = self.budget.reserve_bytes if n_bytes <= self.budget.small_bytes else 0
            if more and self.budget.held + more > self.budget.max_bytes + reserve:
                return False
            self.budget.held += more
            self.taken += more
            return True

    def release(self) -> None:
        """Give everything back; a second time does nothing."""
        with self.budget.lock:
            self.budget.held -= self.taken
            self.taken = 0


class RequestLimits:
    """Sets a request's deadline, and refuses a body while it streams in: too large, no room for it, or stalled."""

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
        held = scope["state"]["held_body"] = HeldBody(scope["app"].state.body_budget)
        announced = Headers(scope=scope).get("content-length", "")
        size, received, more_body = int(announced) if announced.isdecimal() else 0, 0, True
        waited_s, bytes_per_s = 0.0, settings.min_upload_kb_s * 1000

        # HTTPExceptions, because FastAPI turns any other error while it reads a body into a 400.
        def check_size() -> None:
            if size > settings.max_body_mb * 1_000_000:
                raise HTTPException(
                    413, f"The request is larger than {settings.max_body_mb} MB. Send fewer images in one call."
                )
            if not held.grow_to(size):
                raise HTTPException(
                    503,
                    "Other uploads take all the room that there is for them (BDI_MAX_HELD_MB). Send this one again in "
                    "a while.",
                    {"Retry-After": str(QueueFull.retry_after_s)},
                )

        async def receive_within_limits() -> Message:
            nonlocal size, received, more_body, waited_s
            if not more_body:  # what comes now is the client's leave, which has no hurry
                return await receive()
            check_size()  # what was announced, before anything is read
            began_s = time.monotonic()
            limit_s = min(settings.body_timeout_s, max(0.0, deadline_s - began_s))
            try:
                if bytes_per_s:  # only the time that was spent waiting for the client counts
                    left_s = settings.body_timeout_s + received / bytes_per_s - waited_s
                    if left_s <= 0:  # else what has come already would be taken
                        raise TimeoutError
                    limit_s = min(limit_s, left_s)
                async with asyncio.timeout(limit_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"The upload paused for {limit_s:.3g} s, was too slow, or took too long in all. Check the network "
                    "and send it again.",
                    {"Connection": "close"},
                ) from None
            waited_s += time.monotonic() - began_s
            received += len(message.get("body", b""))
            size = max(size, received)
            check_size()
            more_body = message["type"] == "http.request" and message.get("more_body", False)
            return message

        try:
            await self._app(scope, receive_within_limits, send)
        finally:
            if not held.is_handed_over:
                held.release()
