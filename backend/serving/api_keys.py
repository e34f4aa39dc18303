"""API keys: what they look like, and which role one has."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

ApiRole = Literal["inspect", "admin"]
MIN_SECRET_CHARS = 16
_FORM = "Set it as role:secret,role:secret with the roles inspect and admin."


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key; its secret is not kept.

    Attributes:
        role: What it may do; ``admin`` may do all that ``inspect`` may.
        digest: SHA-256 of the secret.
    """

    role: ApiRole
    digest: bytes = field(repr=False)


class ApiKeys:
    """The keys of an installation; without any, everybody may do everything."""

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        """Return whether there are keys."""
        return bool(self._keys)

    @classmethod
    def parse(cls, text: str) -> ApiKeys:
        """Return the keys of ``BDI_API_KEYS``, ``role:secret`` separated by commas.

        Raises:
            ValueError: If the text is malformed; the sentence names the place and never the secret.
        """
        keys: dict[bytes, ApiKey] = {}
        for number, entry in enumerate(text.split(","), 1):
            role, colon, secret = entry.strip().partition(":")
            if not colon or role not in get_args(ApiRole):
                raise ValueError(f"BDI_API_KEYS: entry {number} does not begin with inspect: or admin:. {_FORM}")
            if len(secret) < MIN_SECRET_CHARS:
                raise ValueError(
                    f"BDI_API_KEYS: the secret of entry {number} is shorter than {MIN_SECRET_CHARS} characters."
                )
            if not all("!" <= character <= "~" for character in secret):
                raise ValueError(
                    f"BDI_API_KEYS: the secret of entry {number} holds a blank, or a character that is not ASCII."
                )
            key = ApiKey(role=cast("ApiRole", role), digest=_digest(secret.encode()))
            if key.digest in keys:
                raise ValueError(f"BDI_API_KEYS: the secret of entry {number} stands there twice. Give each its own.")
            keys[key.digest] = key
        return cls(tuple(keys.values()))

    def role_of(self, secret: bytes) -> ApiRole | None:
        """Return the role of a secret, or None if nobody knows it; takes as long whichever key it is."""
        digest, role = _digest(secret), None
        for key in self._keys:  # all of them, also after the one that fits
            if hmac.compare_digest(key.digest, digest):
                role = key.role
        return role


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
