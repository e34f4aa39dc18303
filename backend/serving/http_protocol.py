"""HTTP as uvicorn speaks it with httptools, within bounds that httptools does not keep: what frames a request ends.

httptools hands on a line, headers, chunk sizes and trailers of any length, and uvicorn joins and keeps them: a client
that sends headers without end takes the memory, and the event loop with it. Neither watches the clock before a head is
whole: silent connections would stay until there are no descriptors left.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_FRAMING_BYTES = 65_536
"""Of a request without its body; what uvicorn allows with its other parser, h11."""

HEAD_S = 30.0
"""From the beginning of a connection or of a further request on it until its head is whole, s."""

_FRAMING_PER_BODY_BYTE = 8  # a body in chunks of one byte, the worst of well-formed ones, needs five


class BoundedHttp(HttpToolsProtocol):
    """One connection; a request whose framing does not end is answered 400, one whose head never comes is cut off."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._framing_bytes = 0
        self._head_due: asyncio.TimerHandle | None = None
        self._cycles: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._head_came()
        super().connection_lost(exc)
        self._end_cycles()

    def data_received(self, data: bytes) -> None:
        """Take what has come, unless it frames a request without end."""
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._framing_bytes > MAX_FRAMING_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def send_400_response(self, msg: str) -> None:
        """Refuse what has come; what is being worked on cannot be answered any more."""
        super().send_400_response(msg)
        self._end_cycles()

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Wait no longer: from here on the application has its own limits."""
        self._head_came()
        super().on_headers_complete()
        if self.cycle is not None:
            self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
            self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Count a piece of the body, which has a limit of its own, and the framing that it may need, as no framing."""
        self._framing_bytes = max(0, self._framing_bytes - (1 + _FRAMING_PER_BODY_BYTE) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Count anew for the next request on this connection."""
        self._framing_bytes = 0
        super().on_message_complete()

    def _end_cycles(self) -> None:
        """Let every request of this connection know; uvicorn itself tells only the latest of a pipeline."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _expect_head(self) -> None:
        self._head_came()
        self._head_due = self.loop.call_later(HEAD_S, self.transport.close)

    def _head_came(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
