"""API keys: what they look like, and which role one has."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal, cast, get_args

ApiRole = Literal["inspect", "admin"]
MIN_SECRET_CHARS = 16


class ApiKeys:
    """The keys of an installation; without any, everybody may do everything.

    Args:
        roles: The role of each key by the SHA-256 of its secret, which itself is not kept; ``admin`` may do all that
            ``inspect`` may.
    """

    def __init__(self, roles: Mapping[bytes, ApiRole] | None = None) -> None:
        self._roles = dict(roles or {})

    def __bool__(self) -> bool:
        """Return whether there are keys."""
        return bool(self._roles)

    @classmethod
    def parse(cls, text: str) -> ApiKeys:
        """Return the keys of ``BDI_API_KEYS``, ``role:secret`` separated by commas.

        Raises:
            ValueError: If the text is malformed; the message names the entry and never the secret.
        """
        roles: dict[bytes, ApiRole] = {}
        for number, entry in enumerate(text.split(","), 1):
            role, colon, secret = entry.strip().partition(":")
            if not colon or role not in get_args(ApiRole):
                raise ValueError(
                    f"BDI_API_KEYS: entry {number} does not begin with inspect: or admin:. Set it as "
                    "role:secret,role:secret with the roles inspect and admin."
                )
            which = f"BDI_API_KEYS: the secret of entry {number}"
            if len(secret) < MIN_SECRET_CHARS:
                raise ValueError(f"{which} is shorter than {MIN_SECRET_CHARS} characters.")
            if not all("!" <= character <= "~" for character in secret):
                raise ValueError(f"{which} holds a blank, or a character that is not ASCII.")
            digest = _digest(secret.encode())
            if digest in roles:
                raise ValueError(f"{which} stands there twice. Give each its own.")
            roles[digest] = cast("ApiRole", role)
        return cls(roles)

    def role_of(self, secret: bytes) -> ApiRole | None:
        """Return the role of a secret, or None if nobody knows it; takes as long whichever key it is."""
        sent, found = _digest(secret), None
        for digest, role in self._roles.items():  # all of them, also after the one that fits
            if hmac.compare_digest(digest, sent):
                found = role
        return found


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
