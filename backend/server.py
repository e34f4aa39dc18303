"""The server process of ``roi-inspector serve``: how it starts, and how it ends on a signal."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import EACCES, EADDRINUSE
from types import FrameType

import uvicorn
from fastapi import FastAPI

from backend.app import create_app
from backend.serving.access import warn_of_open_service
from backend.serving.draining import Gate
from backend.serving.hosts import is_loopback
from backend.serving.http_protocol import H11WithHeadTimeout
from backend.serving.logs import json_lines
from backend.settings import Settings
from backend.utils import reason_of

_log = logging.getLogger(__name__)

_NOT_STARTED = 3  # uvicorn's own status
_LOG_WRITING_S = 0.2


class DrainingServer(uvicorn.Server):
    """Ends in two steps: it answers on, and begins nothing new, until the calls under way are answered; then it closes.

    uvicorn alone closes its socket at once; whoever asks then cannot tell a service that ends from one that is gone.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, limit_s: float) -> None:
        super().__init__(config)
        self._state = app.state
        self._limit_s = limit_s
        self._ends_at_s: float | None = None
        self._signalled = threading.Event()
        # Before it is needed: a handler of signals must not start a thread, it may have interrupted such a start.
        threading.Thread(target=self._end_by_force, name="end-by-force", daemon=True).start()

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Begin to end on the first signal, and end at once on the second one."""
        if self._signalled.is_set():
            os._exit(128 + sig)
        self._ends_at_s = time.monotonic() + self._limit_s - min(2.0, self._limit_s / 4)  # the end itself takes time
        self._signalled.set()
        gate: Gate | None = getattr(self._state, "gate", None)
        if gate is not None:  # else it has not even started
            gate.stopping = True
            self._state.jobs.stop()

    async def on_tick(self, counter: int) -> bool:
        """Return whether the socket is to be closed now."""
        if self._ends_at_s is not None:
            gate: Gate | None = getattr(self._state, "gate", None)
            if gate is None or gate.in_flight == 0 or time.monotonic() >= self._ends_at_s:
                self.should_exit = True
        return await super().on_tick(counter)

    def _end_by_force(self) -> None:
        """End the process when its time is over, whatever it does.

        Threads that hang would keep the interpreter, and with it the process, from ending. What they write, they write
        to a file of its own first: nothing is left half written.
        """
        self._signalled.wait()
        time.sleep(max(0.0, self._limit_s - _LOG_WRITING_S))
        # On another thread: where the log is closed already, it would be written to standard error, and may wait there.
        with suppress(RuntimeError):
            late = "the service did not end within %s s and is ended now"
            threading.Thread(target=_log.error, args=(late, self._limit_s), daemon=True).start()
        time.sleep(_LOG_WRITING_S)
        os._exit(1)


def address_fault(host: str, port: int) -> Iterator[str]:
    """Yield a sentence if nobody can listen at an address now."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                if os.name == "posix":  # elsewhere it means that two may listen
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        reason = "address already in use" if getattr(error, "errno", None) == EADDRINUSE else reason_of(reason)
        named = "BDI_BACKEND_PORT" if getattr(error, "errno", None) in (EADDRINUSE, EACCES) else "BDI_BACKEND_HOST"
        yield f"{named} cannot be used: nobody can listen at {host}, port {port}: {reason}. Choose another, or free it."


def serve(settings: Settings, *, host: str, port: int) -> int:
    """Answer calls until a signal ends the process; return its exit status."""
    with json_lines(settings):
        if settings.api_keys is None and not is_loopback(host):
            warn_of_open_service()
        app = create_app(settings)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            server_header=False,
            proxy_headers=False,  # backend/serving/proxies.py reads them, of those that are trusted
            log_config=None,
            access_log=False,
            backlog=128,  # so many are accepted in one turn, before any can be closed
            loop="asyncio",
            http=H11WithHeadTimeout,
            # A client that stalls in the middle of an upload must not keep the service from stopping.
            timeout_graceful_shutdown=1,
        )
        server = DrainingServer(config, app, settings.shutdown_s)
        server.run()
        return 0 if server.started else _NOT_STARTED
