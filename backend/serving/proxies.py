"""Who is at the other end: the connection's own address, or what a proxy that is trusted says of its caller."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.utils import get_remote_addr, is_ssl

from backend.serving.hosts import address_of

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Peer = tuple[str, int]
_WITH_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](?::[0-9]{1,5})?|(?P<v4>[0-9.]+):[0-9]{1,5}")


class TrustedProxies:
    """Puts the caller's address and scheme into the scope: ``X-Forwarded-For`` and ``-Proto`` of trusted proxies only.

    uvicorn by itself believes whoever calls over loopback, and ``FORWARDED_ALLOW_IPS``; its word is not taken.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            peer, scheme = _connection(scope, receive)
            networks = [ipaddress.ip_network(text) for text in scope["app"].state.settings.trusted_proxies]
            if peer is not None and is_within(peer[0], networks):
                peer = forwarded_for(_values(scope, b"x-forwarded-for"), networks) or peer
                scheme = _forwarded_scheme(_values(scope, b"x-forwarded-proto")) or scheme
            scope.update(client=peer, scheme=scheme)
        await self._app(scope, receive, send)


def forwarded_for(values: Sequence[str], networks: Sequence[_Network]) -> _Peer | None:
    """Return who called the proxies.

    Each proxy writes at the end whom it was called by, so the last address that is no proxy's own is the caller's, and
    what stands before it is the caller's word.

    Args:
        values: Of ``X-Forwarded-For``, from the first to the last; its header may come several times.
        networks: The proxies'.

    Returns:
        Address and port 0, or None where nothing usable is said.
    """
    found = None
    for text in reversed(values):
        with_port = _WITH_PORT.fullmatch(text)
        address = address_of(text if with_port is None else with_port["v6"] or with_port["v4"])
        if address is None:
            break
        found = (str(address), 0)
        if not is_within(found[0], networks):
            break
    return found


def is_within(address: str, networks: Sequence[_Network]) -> bool:
    """Return whether an address is one of some networks'; a name is none."""
    found = address_of(address)
    return found is not None and any(found in network for network in networks)


def _connection(scope: Scope, receive: Receive) -> tuple[_Peer | None, str]:
    """Return peer and scheme of a connection of uvicorn, whatever it has put into the scope; else the scope's own."""
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        client = scope.get("client")
        return (None if client is None else (str(client[0]), client[1])), scope["scheme"]
    return get_remote_addr(transport), "https" if is_ssl(transport) else "http"


def _values(scope: Scope, header: bytes) -> list[str]:
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == header]
    return [text.strip() for line in lines for text in line.split(",")]


def _forwarded_scheme(values: Sequence[str]) -> str | None:
    """Return what the nearest proxy says that it was called by."""
    return values[-1] if values and values[-1] in ("http", "https") else None
