from __future__ import annotations

import hmac

import pytest

from backend.serving import api_keys
from backend.serving.api_keys import ApiKeys

ADMIN, INSPECT = "a" * 16, "i-0123456789abcdef"


def test_a_secret_has_the_role_that_it_was_set_with():
    keys = ApiKeys.parse(f"admin:{ADMIN}, inspect:{INSPECT}")
    assert (keys.role_of(ADMIN.encode()), keys.role_of(INSPECT.encode())) == ("admin", "inspect")


@pytest.mark.parametrize(
    "sent", [b"", b"a" * 15, b"a" * 17, ADMIN.upper().encode(), b"admin:" + ADMIN.encode(), b"\xff"]
)
def test_what_is_not_exactly_a_secret_has_no_role(sent):
    assert ApiKeys.parse(f"admin:{ADMIN}").role_of(sent) is None


def test_without_keys_nobody_has_a_role_and_there_are_none():
    assert not ApiKeys()
    assert ApiKeys.parse(f"inspect:{INSPECT}")
    assert ApiKeys().role_of(b"") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "entry 1 does not begin"),
        (ADMIN, "entry 1 does not begin"),
        (f"root:{ADMIN}", "entry 1 does not begin"),
        (f"Admin:{ADMIN}", "entry 1 does not begin"),
        (f"admin:{ADMIN},", "entry 2 does not begin"),
        (f"admin:{ADMIN},inspect:fifteen-chars-x", "secret of entry 2 is shorter than 16"),
        (f"admin:{ADMIN},inspect:sixteen chars xx", "secret of entry 2 holds a blank"),
        (f"admin:{ADMIN},inspect:schlüssel-1234567", "not ASCII"),
        (f"admin:{ADMIN},inspect:{ADMIN}", "entry 2 stands there twice"),
    ],
)
def test_a_malformed_setting_is_refused_by_a_sentence_that_does_not_hold_a_secret(text, complaint):
    with pytest.raises(ValueError, match=complaint) as refused:
        ApiKeys.parse(text)
    for secret in (ADMIN, "fifteen-chars-x", "sixteen chars xx", "schlüssel"):
        assert secret not in str(refused.value)


def test_a_secret_is_compared_with_every_key_in_constant_time(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    keys = ApiKeys.parse(",".join(f"inspect:secret-number-{n:04}" for n in range(5)))
    assert keys.role_of(b"secret-number-0000") == "inspect"
    assert len(compared) == 5, "the first one fits, and still all are looked at"
    assert all(len(a) == len(b) == 32 for a, b in compared)


def test_keys_do_not_show_their_secret():
    keys = ApiKeys.parse(f"admin:{ADMIN}")
    assert ADMIN not in repr(keys) + repr(vars(keys))
