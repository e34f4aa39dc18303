"""Whether scores have moved, and since when: a rank test for a change point, on batches of decisions.

What is tested is the ratio of score and threshold, in batches of neighbouring decisions. Pettitt's test (1979, Applied
Statistics 28(2):126-135) finds the place where the batches before and after differ most by rank, and its p-value holds
for the choice of that place. Batches of one day are alike, which makes a rank test too sure of itself: the statistic is
divided by the square root of the variance inflation (1 + ρ) / (1 - ρ), where ρ is the correlation of neighbouring
batches around the medians before and after. What is significant must also matter: at least 5 % of the threshold, and
three standard deviations of the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

DriftState = Literal["none", "moved", "too_few"]

METHOD: Final = "pettitt_batched"
SIGNIFICANCE: Final = 0.001
MIN_SHIFT: Final = 0.05
"""Least change of the median ratio of score and threshold that counts."""

MIN_DEVIATIONS: Final = 3.0
"""The same in standard deviations of the batches around the medians before and after: days differ a little."""

MIN_BATCHES: Final = 20
MIN_SIDE: Final = 5
"""Least batches before and after a change: a few odd ones are no move."""

MIN_PER_BATCH: Final = 10
MAX_BATCHES: Final = 240


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Whether the ratio of score and threshold has moved.

    Attributes:
        state: ``none``, ``moved``, or ``too_few`` decisions to say.
        since: When the first batch after the change began, s since 1970; None where it has not moved.
        before_median: Of the batches before the first change that was found; None where there are too few.
        after_median: Of the batches since the last one.
        p_value: Of the change that ``since`` names, or of the most likely one that was not significant.
        n_batches: Batches that were compared.
    """

    state: DriftState
    since: float | None = None
    before_median: float | None = None
    after_median: float | None = None
    p_value: float | None = None
    n_batches: int = 0


@dataclass(frozen=True, kw_only=True)
class _Change:
    at: int
    p_value: float
    before: float
    after: float
    deviation: float

    @property
    def counts(self) -> bool:
        return self.p_value < SIGNIFICANCE and abs(self.after - self.before) >= max(
            MIN_SHIFT, MIN_DEVIATIONS * self.deviation
        )


def find_drift(times: Sequence[float], counts: Sequence[int], medians: Sequence[float]) -> Drift:
    """Return whether a ratio has moved.

    Args:
        times: When each period of decisions began, s, ascending.
        counts: Decisions in each.
        medians: Median of the ratio in each.
    """
    starts, values = _batches(np.asarray(times), np.asarray(counts), np.asarray(medians, dtype=np.float64))
    if len(values) < MIN_BATCHES:
        return Drift(state="too_few", n_batches=len(values))
    changes = _changes(values)
    edges = [0, *(at for at, _ in changes), len(values)]
    medians_of = [float(np.median(values[first:last])) for first, last in pairwise(edges)]
    reference, after = medians_of[0], medians_of[-1]
    levels = [(at, level, p_value) for (at, p_value), level in zip(changes, medians_of[1:], strict=True)]
    # The last of the levels may be the first one again; else it holds since the first that has stayed away from it.
    away = None
    for at, level, p_value in reversed(levels):
        if abs(level - reference) < MIN_SHIFT:
            break
        away = (at, p_value)
    if away is None:
        return Drift(
            state="none",
            before_median=reference,
            after_median=after,
            p_value=_change(values).p_value,
            n_batches=len(values),
        )
    return Drift(
        state="moved",
        since=float(starts[away[0]]),
        before_median=reference,
        after_median=after,
        p_value=away[1],
        n_batches=len(values),
    )


def _batches(
    times: NDArray[np.float64], counts: NDArray[np.int64], medians: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where batches of neighbouring periods begin, and their values: the mean of the medians by counts."""
    total = int(counts.sum())
    if not total:
        return np.empty(0), np.empty(0)
    size = max(MIN_PER_BATCH, -(-total // MAX_BATCHES))
    first: list[int] = []
    filled = size
    for n, count in enumerate(counts):
        if filled >= size:
            first.append(n)
            filled = 0
        filled += int(count)
    if filled < MIN_PER_BATCH and len(first) > 1:
        first.pop()  # what is left over goes to the one before
    weights = np.add.reduceat(counts, first)
    return times[first], np.add.reduceat(medians * counts, first) / weights


def _changes(values: NDArray[np.float64], first: int = 0) -> list[tuple[int, float]]:
    """Return the places of all changes that count, ascending, each with its p-value."""
    if len(values) < MIN_BATCHES:
        return []
    change = _change(values)
    if not change.counts:
        return []
    before, after = values[: change.at], values[change.at :]
    place = first + change.at
    return [*_changes(before, first), (place, change.p_value), *_changes(after, place)]


def _change(values: NDArray[np.float64]) -> _Change:
    """Return the most likely place of a change, [T] values before and after it, and its p-value."""
    n = len(values)
    ranks = rankdata(values)
    at = np.arange(1, n)
    statistic = np.abs(2 * np.cumsum(ranks)[:-1] - at * (n + 1))
    statistic[: MIN_SIDE - 1] = statistic[n - MIN_SIDE :] = -1
    place = int(np.argmax(statistic)) + 1
    before, after = float(np.median(values[:place])), float(np.median(values[place:]))
    rest = np.concatenate([rankdata(values[:place]) / place, rankdata(values[place:]) / (n - place)])
    rest -= rest.mean()
    power = float(rest @ rest)
    rho = 0.0 if power == 0 else min(max(float(rest[:-1] @ rest[1:]) / power, 0.0), 0.95)
    inflation = (1 + rho) / (1 - rho)
    residuals = np.concatenate([values[:place] - before, values[place:] - after])
    deviation = 1.4826 * float(np.median(np.abs(residuals)))
    k = float(statistic[place - 1])
    p_value = min(1.0, 2 * float(np.exp(-6 * k * k / inflation / (n**3 + n**2))))
    return _Change(at=place, p_value=p_value, before=before, after=after, deviation=deviation)
