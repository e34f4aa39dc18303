"""HTTP as uvicorn speaks it with h11, which bounds a request's head, and an end to connections that ask for nothing.

uvicorn's own timer runs from an answer until the next byte: whoever sends nothing, or a part of a head, would keep the
connection for ever, and no setting changes that. ``roi-inspector serve`` uses this protocol; plain uvicorn does with
``--http backend.serving.http_protocol:H11WithHeadTimeout``.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class H11WithHeadTimeout(H11Protocol):
    """One connection, closed when no whole request head comes in time.

    Attributes:
        head_timeout_s: From the beginning of the connection, or from its last answer, s.
        read_bytes: How much is parsed before other connections have their turn.
    """

    head_timeout_s: ClassVar[float] = 30.0
    read_bytes: ClassVar[int] = 32_768
    _deadline: asyncio.TimerHandle | None = None
    _has_ended = False  # the client sends no more

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        # asyncio reads 256 KiB; sent in chunks of one byte, they would keep h11, and with it the service, for seconds.
        if hasattr(transport, "max_size"):  # where asyncio itself reads less (Windows) it has no such attribute
            transport.max_size = self.read_bytes
        super().connection_made(transport)
        self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, and let nothing follow of the request that it broke off."""
        super().send_400_response(msg)
        if self.cycle is not None:  # else its answer would be an error in the log, for the connection has ended
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer what is asked already, though the client has closed its side: it may still read."""
        self._has_ended = True
        # A request that is not whole will never be.
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._expect_head()
        if self._has_ended and (self.cycle.response_complete or self.cycle.more_body):
            self.transport.close()  # after the last of the requests that had come

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self.head_timeout_s, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        # A request under way has limits of its own, and its answer starts this timer again.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
