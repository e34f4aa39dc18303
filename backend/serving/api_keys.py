"""API keys: what they look like, and which role one has."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal, cast, get_args

ApiRole = Literal["inspect", "admin"]
MIN_SECRET_CHARS = 16


class ApiKeys(dict[bytes, ApiRole]):
    """The role of each key by the SHA-256 of its secret, which itself is not kept.

    ``admin`` may do all that ``inspect`` may. Without any key, everybody may do everything.
    """

    @classmethod
    def parse(cls, text: str) -> ApiKeys:
        """Return the keys of ``BDI_API_KEYS``, ``role:secret`` separated by commas.

        Raises:
            ValueError: If the text is malformed; the message names the entry and never the secret.
        """
        keys = cls()
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
            digest = digest_of(secret.encode())
            if digest in keys:
                raise ValueError(f"{which} stands there twice. Give each its own.")
            keys[digest] = cast("ApiRole", role)
        return keys

    def role_of(self, secret: bytes) -> ApiRole | None:
        """Return the role of a secret, or None if nobody knows it; takes as long whichever key it is."""
        sent, found = digest_of(secret), None
        for digest, role in self.items():  # all of them, also after the one that fits
            if hmac.compare_digest(digest, sent):
                found = role
        return found


def digest_of(secret: bytes) -> bytes:
    """Return what is kept of a secret: its SHA-256."""
    return hashlib.sha256(secret).digest()
