"""How many connections may be open: fewer than the descriptors that the system lets this process have.

uvicorn accepts whatever comes. Silent connections would take the last descriptor, and then nobody is answered, nor is
any file opened.
"""

from __future__ import annotations

import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_MIN_RESERVE = 256
"""Descriptors for files, and for connections that are accepted in one turn of the event loop."""

_WITHOUT_LIMIT = 4096


def most_connections() -> int:
    """Return how many connections may be open."""
    try:
        import resource  # not on Windows
    except ImportError:
        return _WITHOUT_LIMIT
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _WITHOUT_LIMIT
    return min(_WITHOUT_LIMIT, descriptors - min(_MIN_RESERVE, descriptors // 2))


def close_idle(protocols: set[Any], newest: Any, limit: int) -> None:
    """Close the connection that has asked for nothing for longest, if there are more than ``limit``.

    Those that never asked come first, then those whose last answer is given; the newest, where all others are busy.
    """
    newest.opened_s = time.monotonic()
    if len(protocols) <= limit:
        return
    idle = [each for each in protocols if each is not newest and (each.cycle is None or each.cycle.response_complete)]
    first = min(idle, key=lambda each: (each.cycle is not None, getattr(each, "opened_s", 0.0)), default=newest)
    protocols.discard(first)
    first.transport.abort()  # at once: what it does not read must not keep the descriptor


def limit_connections() -> None:
    """Have every connection of this process limited, also those of plain uvicorn, which has no setting for it."""
    made = H11Protocol.connection_made
    if getattr(made, "is_limited", False):
        return

    def connection_made(self: H11Protocol, transport: Any) -> None:
        made(self, transport)
        close_idle(self.connections, self, most_connections())

    connection_made.is_limited = True  # type: ignore[attr-defined]
    H11Protocol.connection_made = connection_made  # type: ignore[method-assign]
