"""Threads of their own for the calls that write or read much, so that inspections never wait for one of theirs.

What the framework runs by itself shares one pool: whoever fills it, with calls that wait for a lock, stops all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from backend.errors import Busy

N_THREADS = {"writers": 40, "readers": 16}
WAIT_S = 5.0

_LIMITERS: RunVar[dict[str, anyio.CapacityLimiter]] = RunVar("own_threads")

CallT = TypeVar("CallT", bound=Callable[..., Any])


def on_writers_threads(call: CallT) -> CallT:
    """Return a route's function that runs on a thread of the writers; raises Busy if none is free in time."""
    return _on("writers", call)


def on_readers_threads(call: CallT) -> CallT:
    """Return a route's function that runs on a thread of the readers; raises Busy if none is free in time."""
    return _on("readers", call)


def _on(kind: str, call: CallT) -> CallT:
    @functools.wraps(call)
    async def run(*arguments: Any, **named: Any) -> Any:
        limiter = _limiter(kind)
        borrower = object()
        try:
            with anyio.fail_after(WAIT_S):
                await limiter.acquire_on_behalf_of(borrower)
        except TimeoutError:
            raise Busy("All threads for calls of this kind are busy. Send this call again in a moment.") from None
        try:
            # The limiter of this one call: the place is held already.
            alone = anyio.CapacityLimiter(1)
            return await anyio.to_thread.run_sync(functools.partial(call, *arguments, **named), limiter=alone)
        finally:
            limiter.release_on_behalf_of(borrower)

    return run  # type: ignore[return-value]


def _limiter(kind: str) -> anyio.CapacityLimiter:
    """Return the one of this event loop."""
    try:
        limiters = _LIMITERS.get()
    except LookupError:
        limiters = {name: anyio.CapacityLimiter(n) for name, n in N_THREADS.items()}
        _LIMITERS.set(limiters)
    return limiters[kind]
