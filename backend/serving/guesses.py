"""Keys that are tried out: after some wrong ones, further ones of the same address are compared one by one, slowly.

Nobody is locked out. A key that was good before, and any good key of this machine itself, is answered at once;
addresses do not wait for each other; and the same wrong key, sent over and over by a client that nobody has updated,
counts once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from backend.errors import TooManyGuesses
from backend.serving.api_keys import ApiKeys, ApiRole, digest_of
from backend.serving.hosts import address_of

_log = logging.getLogger(__name__)

FREE_GUESSES = 10
INTERVAL_S = 1.0
"""From one comparison to the next of an address that has had its free ones."""
LONGEST_WAIT_S = float(TooManyGuesses.retry_after_s)
FORGOTTEN_S = 600.0
KEPT_ADDRESSES = 1024

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass
class _Wrong:
    digests: set[bytes] = field(default_factory=set)
    latest_s: float = 0.0
    next_s: float = 0.0


class KeyGuesses:
    """Says which role a key has, later and later to those who try many. For the event loop alone.

    Args:
        keys: The good ones.
        clock: Seconds that never go back.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        keys: ApiKeys,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._keys, self._clock, self._sleep = keys, clock, sleep
        self._wrong: OrderedDict[str, _Wrong] = OrderedDict()
        self._good: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    async def role_of(self, secret: bytes, address: str, *, is_local: bool, may_wait: bool) -> ApiRole | None:
        """Return the role of a secret, or None if nobody knows it.

        Args:
            secret: As sent.
            address: The caller's.
            is_local: Whether the caller is this machine itself.
            may_wait: Where False, a secret that would have to wait is taken for a wrong one at once.

        Raises:
            TooManyGuesses: If too many of this address wait already; the secret was not compared.
        """
        place, digest = _place_of(address), digest_of(secret)
        if is_local or (place, digest) in self._good:
            role = self._keys.role_of(secret)
            if role is not None:
                return role
        wrong = self._known_wrong(place)
        if wrong is not None and len(wrong.digests) >= FREE_GUESSES and digest not in wrong.digests:
            if not may_wait:
                return None
            now_s = self._clock()
            turn_s = max(now_s, wrong.next_s)
            if turn_s - now_s > LONGEST_WAIT_S:
                raise TooManyGuesses("Too many wrong API keys came from this address. Wait, and send a good one.")
            wrong.next_s = turn_s + INTERVAL_S
            await self._sleep(turn_s - now_s)
        role = self._keys.role_of(secret)
        if role is None:
            self._note_wrong(place, digest)
        else:
            _put(self._good, (place, digest), None)
        return role

    def _known_wrong(self, place: str) -> _Wrong | None:
        wrong = self._wrong.get(place)
        if wrong is not None and self._clock() - wrong.latest_s > FORGOTTEN_S:
            del self._wrong[place]
            return None
        return wrong

    def _note_wrong(self, place: str, digest: bytes) -> None:
        wrong = self._known_wrong(place) or _Wrong()
        wrong.latest_s = self._clock()
        _put(self._wrong, place, wrong)
        if len(wrong.digests) < FREE_GUESSES:
            wrong.digests.add(digest)
            if len(wrong.digests) == FREE_GUESSES:
                _log.warning(
                    "%d different API keys from %s were wrong: somebody may be guessing. Further ones are compared one "
                    "by one, at most one in %g s.",
                    FREE_GUESSES,
                    place,
                    INTERVAL_S,
                )


def _put(table: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Put an entry last, and drop the first ones of a full table."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > KEPT_ADDRESSES:
        table.popitem(last=False)


def _place_of(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, or the 64 bits of IPv6 that one subscriber has."""
    found = address_of(address)
    if found is None or found.version == 4:
        return str(found or address)
    return f"{found.exploded[:19]}::/64"
