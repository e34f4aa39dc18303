"""Keys that are tried out, against a clock that a test moves."""

from __future__ import annotations

import asyncio

import pytest

from backend.errors import TooManyGuesses
from backend.serving import guesses as guesses_module
from backend.serving.api_keys import ApiKeys, ApiRole
from backend.serving.guesses import FORGOTTEN_S, FREE_GUESSES, INTERVAL_S, KEPT_ADDRESSES, LONGEST_WAIT_S, KeyGuesses

GOOD = "admin-0123456789abcdef"
ATTACKER, OTHER = "203.0.113.9", "203.0.113.10"


class Desk:
    """A runner of one KeyGuesses; a wait moves the clock at once, unless it is held."""

    def __init__(self) -> None:
        self.now_s, self.waits_s = 1000.0, list[float]()
        self.guesses = KeyGuesses(ApiKeys.parse(f"admin:{GOOD}"), clock=lambda: self.now_s, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)

    def ask(
        self, secret: str, address: str = ATTACKER, *, is_local: bool = False, may_wait: bool = True
    ) -> ApiRole | None:
        return asyncio.run(self.guesses.role_of(secret.encode(), address, is_local=is_local, may_wait=may_wait))

    def guess(self, times: int, address: str = ATTACKER, *, is_local: bool = False) -> None:
        for number in range(times):
            assert self.ask(f"wrong-{address}-{number}", address, is_local=is_local) is None


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_first_wrong_keys_wait_for_nothing_and_then_one_is_compared_at_a_time(desk: Desk) -> None:
    desk.guess(FREE_GUESSES)
    assert desk.waits_s == []
    for number in range(int(LONGEST_WAIT_S / INTERVAL_S) + 1):
        assert desk.ask(f"more-{number}") is None
    assert desk.waits_s == [number * INTERVAL_S for number in range(len(desk.waits_s))]
    with pytest.raises(TooManyGuesses):
        desk.ask("one-more")
    with pytest.raises(TooManyGuesses):
        desk.ask(GOOD)  # not even compared: an answer would say that it was right
    desk.now_s += 60
    assert desk.ask(GOOD) == "admin"


def test_addresses_do_not_wait_for_each_other(desk: Desk) -> None:
    desk.guess(FREE_GUESSES + 3)
    desk.waits_s.clear()
    assert desk.ask(GOOD, OTHER) == "admin"
    assert desk.ask("wrong", OTHER) is None
    assert desk.waits_s == []


def test_a_key_that_was_good_from_an_address_stays_so(desk: Desk) -> None:
    assert desk.ask(GOOD) == "admin"
    desk.guess(FREE_GUESSES + 3)
    desk.waits_s.clear()
    assert desk.ask(GOOD) == "admin"
    assert desk.waits_s == []


def test_a_good_key_of_this_machine_itself_is_answered_at_once(desk: Desk) -> None:
    desk.guess(FREE_GUESSES + 3, "127.0.0.1", is_local=True)
    desk.waits_s.clear()
    assert desk.ask(GOOD, "127.0.0.1", is_local=True) == "admin"
    assert desk.waits_s == []
    desk.ask("wrong", "127.0.0.1", is_local=True)
    assert len(desk.waits_s) == 1


def test_the_same_wrong_key_counts_once(desk: Desk) -> None:
    for _ in range(50):
        assert desk.ask("an-old-key") is None
    assert desk.waits_s == []


def test_what_may_not_wait_is_not_compared(desk: Desk) -> None:
    desk.guess(FREE_GUESSES)
    assert desk.ask(GOOD, may_wait=False) is None
    assert desk.waits_s == []


def test_guesses_are_forgotten_after_a_while(desk: Desk) -> None:
    desk.guess(FREE_GUESSES)
    desk.now_s += FORGOTTEN_S + 1
    desk.guess(FREE_GUESSES)
    assert desk.waits_s == []


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.9", "203.0.113.9", True),
        ("203.0.113.9", "203.0.113.8", False),
        ("testclient", "", False),
    ],
)
def test_an_address_is_a_subscriber(desk: Desk, one: str, other: str, are_one: bool) -> None:
    desk.guess(FREE_GUESSES, one)
    desk.ask("another", other)
    assert bool(desk.waits_s) is are_one


def test_the_table_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEPT_ADDRESSES <= 10_000
    monkeypatch.setattr(guesses_module, "KEPT_ADDRESSES", 8)
    for number in range(40):
        desk.guess(FREE_GUESSES + 1, f"10.0.0.{number}")
        assert desk.ask(GOOD, f"10.1.0.{number}") == "admin"
    assert len(desk.guesses._wrong) == len(desk.guesses._good) == 8
    assert all(len(wrong.digests) <= FREE_GUESSES for wrong in desk.guesses._wrong.values())
