"""Until when the work for a request may take; known to all code that works for it, on whichever thread."""

from __future__ import annotations

import time
from contextvars import ContextVar

from backend.errors import RequestTimeout

DEADLINE_S: ContextVar[float | None] = ContextVar("DEADLINE_S", default=None)
"""On the clock of ``time.monotonic``, or None where nothing limits the work."""


def remaining_s() -> float | None:
    """Return the seconds that are left, at least 0, or None where nothing limits the work."""
    deadline_s = DEADLINE_S.get()
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


def end_if_late(_done: int, _total: int) -> None:
    """End a long call once its request has taken too long; takes the place of a progress callback.

    Raises:
        RequestTimeout: If nothing of the time is left.
    """
    if remaining_s() == 0.0:
        raise RequestTimeout(
            "This call takes longer than a request may, and was ended; nothing of it was stored. Send it with the "
            "header `Prefer: respond-async`, or allow more with BDI_REQUEST_TIMEOUT_S."
        )
