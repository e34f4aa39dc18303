"""Under which name the service is called, and from which page: the headers Host, Origin and Sec-Fetch-Site.

A page whose name is re-pointed at this machine (DNS rebinding) is its own origin: the browser lets it send everything
and read every answer. Only the name that it calls gives it away, so a service that asks for no key looks at the name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import NamedTuple

from starlette.types import Scope

from backend.errors import BadRequest, Forbidden

READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""

_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{0,5}))?", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Authority(NamedTuple):
    """Whom a Host or an Origin names: a name in lower case without a final dot, or an address, and a port if any."""

    name: str
    port: int | None


def address_of(text: str) -> _Address | None:
    """Return an IP address, an IPv4 one also where it is written as IPv6 (``::ffff:127.0.0.1``), or None for a name."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str | None) -> bool:
    """Return whether an address, a name or a socket's path is this machine's alone; a name may be anybody's."""
    address = address_of(host or "0.0.0.0")
    if address is None:
        return host == "localhost" or "/" in (host or "")
    return address.is_loopback


def authority_of(text: str) -> Authority | None:
    """Return whom a text names, or None where it is not written as RFC 3986 has it."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    name, port = normal_name(found["name"]), found["port"]
    return Authority(name, int(port) if port else None) if name else None


def normal_name(name: str) -> str:
    """Return a name as others write it too: lower case, no final dot, no brackets, an address in its shortest form."""
    name = name.lower().removesuffix(".")
    address = address_of(name.removeprefix("[").removesuffix("]"))
    return name if address is None else str(address)


def check_site(scope: Scope, *, allowed_hosts: Collection[str], cors_origins: Collection[str], has_keys: bool) -> None:
    """Refuse a call under a name that is not the service's, and one that a page of another web site sends.

    Args:
        scope: The request.
        allowed_hosts: Names beside the loopback's; ``*`` for any. With them, every call must be under one of them.
        cors_origins: Origins of pages that may call; ``*`` for any.
        has_keys: Whether calls need a key, which no page of another site has.

    Raises:
        BadRequest: If a call that must name its host names none, or several.
        Forbidden: If the name, or the page, may not call.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    hosts, origins, sites = (
        [value.decode("latin-1") for name, value in headers if name == wanted]
        for wanted in (b"host", b"origin", b"sec-fetch-site")
    )
    # The connection's own address: no header and no proxy can change it. A test client has a name there.
    server = str((scope.get("server") or ("localhost",))[0])
    host = authority_of(hosts[0]) if len(hosts) == 1 else None
    changes, is_checked = scope["method"] not in READING, bool(allowed_hosts) or (not has_keys and is_loopback(server))
    if host is None and (is_checked or changes or len(hosts) > 1):
        raise BadRequest(
            "The request must name the service once, in one header Host: a name or an address, and a port."
        )
    if is_checked and host is not None and not _is_ours(host.name, server, allowed_hosts):
        raise Forbidden(
            "The service does not answer under this host name. Call it as localhost or 127.0.0.1, or set "
            "BDI_ALLOWED_HOSTS to the names that it has."
        )
    if len(origins) > 1:
        raise Forbidden("The request comes from two origins at once. Send the header Origin once.")
    if not changes:
        return
    if not origins:
        # What a browser says where it sends no Origin; programs send neither.
        if not {*sites} <= {"same-origin", "none"}:
            raise _of_another_site()
        return
    if {origins[0], "*"} & {*cors_origins}:
        return
    if not _is_own_page(origins[0], host, scope["scheme"]):
        raise _of_another_site()
    if not (is_checked or has_keys) and host is not None and _may_be_re_pointed(host.name, server):
        raise Forbidden(
            "A page under this host name may not call: a name in the DNS can be pointed at any machine. Set "
            "BDI_ALLOWED_HOSTS to it if it is the service's own, or BDI_API_KEYS."
        )


def _is_ours(name: str, server: str, allowed_hosts: Collection[str]) -> bool:
    if "*" in allowed_hosts or name in {*map(normal_name, allowed_hosts)} or name == "localhost":
        return True
    address = address_of(name)
    return address is not None and (address.is_loopback or address == address_of(server))


def _may_be_re_pointed(name: str, server: str) -> bool:
    """Return whether somebody outside may own a name that leads to a real connection's address."""
    return address_of(server) is not None and address_of(name) is None and "." in name


def _is_own_page(origin: str, host: Authority | None, scheme: str) -> bool:
    """Return whether an origin is the service's own: the same host and port, by TLS where the call came by TLS."""
    origin_scheme, separator, rest = origin.partition("://")
    page, default = authority_of(rest), _DEFAULT_PORTS.get(origin_scheme)
    if not separator or default is None or page is None or host is None:
        return False
    # A proxy that nobody trusts speaks plain HTTP here, whatever the browser speaks to it.
    if origin_scheme not in ("https", scheme):
        return False
    return (page.name, page.port or default) == (host.name, host.port or default)


def _of_another_site() -> Forbidden:
    return Forbidden("A page of another web site may not call. Name its origin in BDI_CORS_ORIGINS if it shall.")
