"""Millimetres and pixels, seeding, timers, digests: leaves that know nothing of ours."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

MIN_MM_PER_PX, MAX_MM_PER_PX = 1e-6, 100.0
"""Range of the scale that a request or an image's metadata may name, millimetres per pixel."""


def mm2_to_px(area_mm2: float, mm_per_px: float) -> int:
    """Return the smallest whole number of pixels that covers an area on the part, mm²."""
    return math.ceil(area_mm2 / mm_per_px**2 - 1e-9)  # 1 mm² at 0.1 mm/px is 100 px, not 101


def px_to_mm2(area_px: int, mm_per_px: float) -> float:
    """Return the area on the part, mm², of a number of pixels."""
    return area_px * mm_per_px**2


def generator(seed: int) -> np.random.Generator:
    """Return the one kind of random generator used here. Its stream is stable across numpy versions for integers."""
    return np.random.Generator(np.random.PCG64(seed))


def reason_of(message: str) -> str:
    """Return a message of pydantic as a part of a sentence: without its prefix, and in lower case."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def json_noting_repeats(data: bytes | str) -> tuple[Any, tuple[str, ...]]:
    """Return decoded JSON, and the names that come twice in one of its objects (the last value of such a name counts).

    A byte order mark before it is skipped.

    Raises:
        ValueError: If it is no JSON.
        RecursionError: If it is nested too deep.
    """
    repeated: dict[str, None] = {}

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.update((name, None) for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        return found

    text = data.removeprefix("\ufeff") if isinstance(data, str) else data
    value = json.loads(text, object_pairs_hook=as_dict)
    return value, tuple(repeated)


def sha256_hex(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of the parts, each preceded by its length so that no two lists of parts agree by accident."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Return the one byte form of a JSON object: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object in its one byte form, with a digest of itself under ``sha256``; ``unsealed_json`` reads it.

    Raises:
        ValueError: If a value has no JSON form.
    """
    return canonical_json({**value, "sha256": sha256_hex(canonical_json(value))})


def unsealed_json(data: bytes) -> dict[str, Any]:
    """Return the object of ``sealed_json``.

    Raises:
        ValueError: If a single byte is not as it was sealed.
    """
    try:
        value: dict[str, Any] = json.loads(data)
        value.pop("sha256")
        if sealed_json(value) == data:
            return value
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("not a sealed JSON object") from error
    raise ValueError("digest mismatch")


class Stopwatch:
    """Adds up the milliseconds spent under each name."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._laps: dict[str, float] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Count the time of the ``with`` block under ``name``."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - before) * 1e3)

    def add(self, name: str, elapsed_ms: float) -> None:
        """Count milliseconds that somebody else measured."""
        self._laps[name] = self._laps.get(name, 0.0) + elapsed_ms

    def timings_ms(self) -> dict[str, float]:
        """Return milliseconds by name, with ``total`` since the watch was made."""
        total = (time.perf_counter() - self._started) * 1e3
        return {name: round(ms, 3) for name, ms in [*self._laps.items(), ("total", total)]}
