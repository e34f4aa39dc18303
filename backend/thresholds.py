"""Thresholds, and what they are worth.

A threshold is an order statistic of scores of good parts that the memory has not seen. If those scores and tomorrow's
are exchangeable, the false-alarm rate of the j-th smallest of n is Beta(n - j + 1, j) distributed, whatever the scores'
own distribution (David & Nagaraja 2003, *Order Statistics*, §2.3; the same argument as in conformal prediction, Vovk et
al. 2005). So what n good parts can prove is known before the first part is inspected, and it is said in every answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from backend.errors import InvalidInput, InvalidScores

Method = Literal["ok_percentile", "between_ok_and_ng", "fewest_errors", "manual"]

OK_PERCENTILE = 99.0
NG_PERCENTILE = 5.0
MARGIN_RANGE = (0.5, 3.0)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a threshold promises about good parts that nobody has seen.

    Attributes:
        expected_false_alarm_rate: Mean share of good parts above the threshold.
        false_alarm_rate_upper_95: The share that is not exceeded with 95 % confidence.
    """

    expected_false_alarm_rate: float
    false_alarm_rate_upper_95: float


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold and how it came about; see ``set_threshold``.

    Attributes:
        threshold: Scores above it are ``ng``; on the scale of the distances, [0, 2].
        p99_ok: 99th percentile (an order statistic) of the OK scores; 0.0 without any.
        p5_ng: 5th percentile of the NG scores, None without any.
        method: ``manual`` for one that was set by hand; the scores say only what it means.
        n_ok: Independent OK scores (parts); 0 only for a manual one.
        ok_rejected: OK scores above the threshold: false alarms.
        ng_caught: NG scores above the threshold.
        margin: Factor on what the OK scores call for.
        ok_mean: Mean of the OK scores, 0.0 without any.
        ng_mean: Mean of the NG scores, 0.0 without any.
        bounds: What the threshold promises.
        warnings: What the engineer should know.
    """

    threshold: float
    p99_ok: float
    p5_ng: float | None
    method: Method
    n_ok: int
    ok_rejected: int = 0
    n_ng: int
    ng_caught: int
    margin: float
    ok_mean: float
    ng_mean: float
    bounds: Bounds
    warnings: tuple[str, ...] = ()


def set_threshold(
    ok_scores: Sequence[float],
    ng_scores: Sequence[float] | None = None,
    *,
    percentile: float = OK_PERCENTILE,
    margin: float = 1.0,
) -> Threshold:
    """Return the threshold that a ROI's good and few bad scores call for.

    Without NG: the percentile of the OK scores. With NG that lie above it: between it and p5(NG), the
    nearer to the OK scores the more of them there are, since n scores leave the edge of their kind open by about 1/n of
    its range: two easily seen defects must not push the threshold away from fifty good parts. The way between is
    divided by ratios, because that is how scores compare: a defect that scores five times the threshold tells no more
    about those that are hard to see than one that scores twice as much. With NG that do not: the
    threshold, among the midpoints of neighbouring scores, that makes the fewest false alarms and misses; of several,
    the one that catches most NG, and a warning.

    ``margin`` is never without effect, and a larger one never gives a lower threshold. It multiplies the percentile of
    the OK scores, with NG above as well, where the threshold lies between that product and p5(NG); or at the product,
    where that is larger. Where the NG are not above, it multiplies the threshold that makes the fewest errors.

    A percentile of n scores is the order statistic ``ceil(percentile/100 · (n - 1))`` (numpy's ``higher``), and p5 of
    the NG its mirror image. Interpolation between the two largest scores, numpy's default, would put the threshold
    below the largest of 50 and forfeit the guarantee 1 - 0.05^(1/n) that the largest has.

    Args:
        ok_scores: Scores of good images that the memory has not seen, one per independent part; ≥ 1.
        ng_scores: Scores of bad images, if any.
        percentile: Of the OK scores, in (0, 100].
        margin: In ``MARGIN_RANGE``.

    Raises:
        InvalidScores: If a list that is given is empty or a score is negative or not finite.
        InvalidInput: If ``percentile`` or ``margin`` is out of range.
    """
    ok = np.sort(_checked_scores(ok_scores, "ok_scores"))
    ng = np.empty(0) if ng_scores is None or not len(ng_scores) else np.sort(_checked_scores(ng_scores, "ng_scores"))
    if not 0 < percentile <= 100:
        raise InvalidInput(
            f"The percentile is {percentile:g}; it must be above 0 and at most 100.", details={"field": "ok_percentile"}
        )
    if not MARGIN_RANGE[0] <= margin <= MARGIN_RANGE[1]:
        raise InvalidInput(
            f"margin is {margin:g}; it must be in {MARGIN_RANGE[0]:g} … {MARGIN_RANGE[1]:g}.",
            details={"field": "margin"},
        )
    return _set_threshold(ok, ng, percentile, margin)


def _set_threshold(ok: NDArray[np.float64], ng: NDArray[np.float64], percentile: float, margin: float) -> Threshold:
    n = len(ok)
    rank = int(np.percentile(np.arange(1, n + 1), percentile, method="higher"))
    p_ok = float(ok[rank - 1])
    warnings: list[str] = []
    method: Method = "ok_percentile"
    low = threshold = margin * p_ok
    if len(ng):
        p5_ng = float(np.percentile(ng, NG_PERCENTILE, method="lower"))
        if p5_ng <= p_ok:
            method, threshold = "fewest_errors", margin * _fewest_errors(ok, ng)
        elif p5_ng > low:
            method, threshold = "between_ok_and_ng", _between(low, p5_ng, len(ng) / (n + len(ng)))
        else:
            warnings.append(
                f"The margin {margin:g} lifts the threshold to the 5th percentile of the NG scores or above; a margin "
                f"that leaves it below is smaller than {p5_ng / p_ok:.3g}."
            )
        if hidden := int((ng <= ok[-1]).sum()):
            warnings.append(
                f"{hidden} of {len(ng)} NG scores lie below the largest OK score: this ROI does not tell these defects "
                "from good parts. Look at them: another score_mode, a larger input_size or a tighter shape may help."
            )
    if rank == n and percentile < 100 and method != "fewest_errors":
        warnings.append(
            f"{n} good parts are too few to tell the {percentile:g}th percentile from the largest score; "
            "the threshold rests on the largest one."
        )
    # A threshold at or above the order statistic that was fixed beforehand has that one's guarantee. Counting how many
    # scores happen to lie below it would let the scores choose the rank: with ties, 8 % of such bounds were too small.
    rank_was_chosen = method == "fewest_errors" or threshold < p_ok
    if rank_was_chosen:
        rank = int((ok <= threshold).sum())
    warnings += _of_missed(ng, threshold)
    return Threshold(
        threshold=threshold,
        method=method,
        margin=margin,
        bounds=false_alarm_bounds(n, rank, rank_was_chosen=rank_was_chosen),
        warnings=tuple(warnings),
        **_summary(ok, ng, threshold),
    )


def manual_threshold(
    threshold: float, ok_scores: Sequence[float] | None, ng_scores: Sequence[float] | None = None
) -> Threshold:
    """Return a threshold that was set by hand, with what it means on scores of good and bad images.

    The bounds count for any rank: whoever sets a threshold has seen the scores.

    Args:
        threshold: Larger than 0.
        ok_scores: As of ``set_threshold``, or None without any.
        ng_scores: As of ``set_threshold``.

    Raises:
        InvalidInput: If the threshold is no positive number.
        InvalidScores: If a list that is given is empty, or a score is negative or not finite.
    """
    if not 0 < threshold < math.inf:
        raise InvalidInput(
            f"The threshold is {threshold:g}; it must be greater than 0.", details={"field": "threshold", "gt": 0}
        )
    ok = np.empty(0) if ok_scores is None else np.sort(_checked_scores(ok_scores, "ok_scores"))
    ng = np.empty(0) if ng_scores is None or not len(ng_scores) else np.sort(_checked_scores(ng_scores, "ng_scores"))
    return Threshold(
        threshold=threshold,
        method="manual",
        margin=1.0,
        bounds=false_alarm_bounds(len(ok), int((ok <= threshold).sum()), rank_was_chosen=True),
        warnings=tuple(_of_missed(ng, threshold)),
        **_summary(ok, ng, threshold),
    )


def _summary(ok: NDArray[np.float64], ng: NDArray[np.float64], threshold: float) -> dict[str, Any]:
    """Return what a ``Threshold`` says of ascending scores."""
    return {
        "p99_ok": float(np.percentile(ok, OK_PERCENTILE, method="higher")) if len(ok) else 0.0,
        "p5_ng": float(np.percentile(ng, NG_PERCENTILE, method="lower")) if len(ng) else None,
        "n_ok": len(ok),
        "ok_rejected": int((ok > threshold).sum()),
        "n_ng": len(ng),
        "ng_caught": int((ng > threshold).sum()),
        "ok_mean": float(ok.mean()) if len(ok) else 0.0,
        "ng_mean": float(ng.mean()) if len(ng) else 0.0,
    }


def _of_missed(ng: NDArray[np.float64], threshold: float) -> Iterable[str]:
    if missed := int((ng <= threshold).sum()):
        yield f"{missed} of {len(ng)} NG images stay below the threshold and pass as good."


def _between(low: float, high: float, share: float) -> float:
    """Return what lies a share of the way from one score to a higher one, by their ratio; by differences from 0."""
    return low * (high / low) ** share if low > 0 else high * share


def false_alarm_bounds(n: int, rank: int, *, rank_was_chosen: bool = False) -> Bounds:
    """Return what a threshold promises that is not below the ``rank``-th smallest of n exchangeable OK scores.

    For a threshold at the largest of n: 1/(n + 1), and 1 - 0.05^(1/n).

    Args:
        n: Independent OK scores.
        rank: 1 … n; 0 for a threshold below them all, which promises nothing.
        rank_was_chosen: True when the scores themselves decided which order statistic the threshold is. Then the bound
            must hold for every one of them at once: the largest score gets four fifths of the 5 %, the others share
            the rest (Bonferroni).
    """
    if rank == 0:
        return Bounds(expected_false_alarm_rate=1.0, false_alarm_rate_upper_95=1.0)
    alpha = 0.05
    if rank_was_chosen and n > 1:
        alpha = 0.04 if rank == n else 0.01 / (n - 1)
    return Bounds(
        expected_false_alarm_rate=(n - rank + 1) / (n + 1),
        false_alarm_rate_upper_95=float(betaincinv(n - rank + 1, rank, 1 - alpha)),
    )


def _fewest_errors(ok: NDArray[np.float64], ng: NDArray[np.float64]) -> float:
    scores = np.unique(np.concatenate([ok, ng]))
    # Above every score, between neighbours, and below every score; a midpoint keeps the farthest from both.
    candidates = np.concatenate([[scores[0] / 2], (scores[:-1] + scores[1:]) / 2, [scores[-1]]])
    false_alarms = len(ok) - np.searchsorted(ok, candidates, side="right")
    misses = np.searchsorted(ng, candidates, side="right")
    return float(candidates[np.lexsort((misses, false_alarms + misses))[0]])


def _checked_scores(scores: Sequence[float], field: str) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise InvalidScores(
            f"{field} is empty. Send at least one score, or leave the field out.", details={"field": field}
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise InvalidScores(f"{field} holds a value that is negative or not a number.", details={"field": field})
    return values
