"""One exchange over a raw socket: bytes out, answers in, and whether the server kept to HTTP and to its time."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import h11

ANSWER_S = 30.0
"""A whole request must be answered, or its connection closed, within this."""

_PATIENCE_S = 0.05  # for a server that rightly waits for the rest of a request
_PAUSE_S = 0.002  # so that pieces travel in packets of their own
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What came of one connection.

    Attributes:
        statuses: Of the answers, in order.
        received: All that was received.
        timed_out: True when a whole request was neither answered nor refused.
        elapsed_s: From the first byte sent to the end.
    """

    statuses: Sequence[int]
    received: bytes = field(repr=False)
    timed_out: bool
    elapsed_s: float


def is_whole(data: bytes) -> bool:
    """Return whether bytes begin with something that a server can answer: a whole request, or no HTTP at all."""
    parser = h11.Connection(h11.SERVER)
    try:
        parser.receive_data(data)
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return False
            if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return True
    except h11.RemoteProtocolError:
        return True


def exchange(port: int, pieces: Sequence[bytes], *, hang_up: bool = False) -> Exchange:
    """Send bytes and return what came back.

    Args:
        port: On the loopback interface.
        pieces: Sent one after the other.
        hang_up: Close the connection as soon as all is sent, and read nothing.
    """
    whole = is_whole(b"".join(pieces))
    started_s = time.monotonic()
    received = b""
    timed_out = False
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError, TimeoutError):  # a refusal may come before all is sent
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(_PAUSE_S)
                connection.sendall(piece)
        if not hang_up:
            received, timed_out = _read(connection, ANSWER_S if whole else _PATIENCE_S)
    return Exchange(
        statuses=[int(status) for status in _STATUS.findall(received)],
        received=received,
        timed_out=timed_out and whole,
        elapsed_s=time.monotonic() - started_s,
    )


def _read(connection: socket.socket, patience_s: float) -> tuple[bytes, bool]:
    """Return what comes until an answer is whole or the connection ends, and whether the patience ran out first."""
    received = b""
    while not _has_whole_answer(received):
        # Once an answer has begun, its rest must come.
        connection.settimeout(_PATIENCE_S if _is_bodiless(received) else ANSWER_S if received else patience_s)
        try:
            some = connection.recv(1 << 16)
        except TimeoutError:
            return received, not _is_bodiless(received)
        except ConnectionError:
            break
        if not some:
            break
        received += some
    return received, False


def _is_bodiless(received: bytes) -> bool:
    """Return whether a whole head has come and nothing else: an answer to HEAD, whose body never comes."""
    return received.endswith(b"\r\n\r\n") and not received.startswith(b"HTTP/1.1 100")


def _has_whole_answer(received: bytes) -> bool:
    """Return whether a final answer has come with its body."""
    while received:
        head, found, rest = received.partition(b"\r\n\r\n")
        if not found:
            return False
        if head.startswith((b"HTTP/1.1 100", b"HTTP/1.0 100")):
            received = rest
            continue
        length = _LENGTH.search(head)
        if length is not None:
            return len(rest) >= int(length[1])
        return head[9:12] in (b"204", b"304") or rest.endswith(b"0\r\n\r\n")
    return False
