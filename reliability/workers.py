"""Clients at work in threads of their own until they are stopped; one that does not stop is a finding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from reliability.outcomes import Findings

_JOIN_S = 120.0

Work = Callable[[threading.Event], None]
"""Works until the event is set."""


@contextmanager
def at_work(clients: Sequence[Work], findings: Findings) -> Iterator[threading.Event]:
    """Let clients work during the ``with`` block; yields the event that stops them, which its end sets."""
    stop = threading.Event()
    threads = [threading.Thread(target=client, args=(stop,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield stop
    finally:
        stop.set()
        for thread in threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                findings.add("hang", f"a client still waits {_JOIN_S:.0f} s after the end")
