import hashlib
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.utils import (
    Stopwatch,
    canonical_json,
    generator,
    mm2_to_px,
    px_to_mm2,
    sealed_json,
    sha256_hex,
    unsealed_json,
)


@pytest.mark.parametrize(
    ("area_mm2", "mm_per_px", "area_px"),
    [
        (1.0, 0.2, 25),
        (1.0, 0.1, 100),  # 1 / 0.1² is 99.99999999999999 in floating point
        (1.0, 0.05, 400),
        (1.0, 0.3, 12),  # 11.1 px: eleven would be less than 1 mm²
        (0.01, 0.2, 1),
        (1.0, 3.0, 1),
        (0.0, 0.2, 0),
    ],
)
def test_an_area_needs_the_smallest_number_of_pixels_that_covers_it(area_mm2, mm_per_px, area_px):
    assert mm2_to_px(area_mm2, mm_per_px) == area_px


@given(st.integers(0, 1_000_000), st.floats(1e-3, 100.0))
def test_pixels_to_square_millimetres_and_back_is_the_same_number(area_px, mm_per_px):
    assert mm2_to_px(px_to_mm2(area_px, mm_per_px), mm_per_px) == area_px


@pytest.mark.parametrize(("area_px", "mm_per_px", "area_mm2"), [(20, 0.2, 0.8), (1, 1.0, 1.0), (0, 0.2, 0.0)])
def test_area_on_the_part_grows_with_the_square_of_the_scale(area_px, mm_per_px, area_mm2):
    assert px_to_mm2(area_px, mm_per_px) == pytest.approx(area_mm2)


def test_the_random_stream_of_a_seed_is_the_one_that_stored_memories_were_made_with():
    # Written down once: another generator would make every fitted ROI another memory.
    assert generator(0).integers(36450, size=4).tolist() == [31005, 23217, 18630, 9833]
    assert generator(7).integers(36450, size=4).tolist() == [34441, 22784, 24938, 32703]


def test_a_digest_tells_how_its_parts_were_cut():
    assert sha256_hex(b"ab", b"c") != sha256_hex(b"a", b"bc")
    assert sha256_hex(b"ab") != sha256_hex(b"ab", b"")
    assert sha256_hex(b"ab") == hashlib.sha256((2).to_bytes(8, "little") + b"ab").hexdigest()


def test_a_digest_reads_a_memoryview_as_its_bytes():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert sha256_hex(array.data.cast("B")) == sha256_hex(bytes(range(6)))


def test_an_object_has_one_json_form_whatever_the_order_of_its_keys():
    assert canonical_json({"b": 1, "ä": [1.5, None]}) == '{"b":1,"ä":[1.5,null]}'.encode()
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1}) == b'{"a":2,"b":1}'


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_does_not_know_is_refused(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": value})


def test_a_stopwatch_adds_up_the_laps_of_one_name_and_the_time_of_others():
    watch = Stopwatch()
    for _ in range(2):
        with watch.lap("sleep"):
            time.sleep(0.01)
    watch.add("queue", 2.5)
    watch.add("queue", 1.0)
    timings = watch.timings_ms()
    assert list(timings) == ["sleep", "queue", "total"]
    assert timings["queue"] == 3.5
    assert 20 <= timings["sleep"] <= timings["total"]


def test_a_lap_that_fails_is_counted_and_its_error_goes_on():
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.lap("failing"):
        raise KeyError("x")
    assert "failing" in watch.timings_ms()


def test_a_sealed_object_opens_only_as_it_was_sealed():
    value = {"b": [1, 2.5, None], "a": "größe"}
    sealed = sealed_json(value)
    assert unsealed_json(sealed) == value
    for at in range(len(sealed)):
        with pytest.raises(ValueError, match=r"\w"):
            unsealed_json(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
        with pytest.raises(ValueError, match=r"\w"):
            unsealed_json(sealed[:at])
    for other in (sealed + b"\n", b"[]", b"null", b'{"sha256":1}', b"[" * 100_000):
        with pytest.raises(ValueError, match=r"\w"):
            unsealed_json(other)
