"""What a threshold may promise where images show the same parts: no more than the different parts can prove."""

from __future__ import annotations

from dataclasses import dataclass, replace

from backend.calib import Bounds, Threshold, false_alarm_bounds
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import LeaveOneOutScores


@dataclass(frozen=True, kw_only=True)
class PromisedParts:
    """The different good parts that a promise rests on.

    Attributes:
        n: Different parts.
        n_unseen: Those of them that were scored without any image of theirs.
    """

    n: int
    n_unseen: int

    def honest(self, bounds: Bounds) -> Bounds:
        """Return bounds that promise no more than the unseen parts can prove."""
        most = false_alarm_bounds(max(self.n_unseen, 1), max(self.n_unseen, 0))
        return replace(bounds, **{name: max(value, getattr(most, name)) for name, value in vars(bounds).items()})


def promised_parts(
    bank: MemoryBank, scores: LeaveOneOutScores, n: int | None = None, *, n_added: int = 0
) -> PromisedParts:
    """Return what a promise rests on.

    Args:
        bank: The memory.
        scores: Its leave-one-out scores.
        n: Different parts of a data set; None for those that the memory has scores of.
        n_added: Parts beside these.
    """
    parts = bank.distinct_parts
    n = n_added + (len({parts[digest] for digest in scores.by_image}) if n is None else n)
    # Measured beside another image of the same part, a score says nothing of parts that nobody has seen.
    seen = {parts[digest] for digest in bank.scored_beside_own_part & set(scores.by_image)}
    return PromisedParts(n=n, n_unseen=n - len(seen))


def with_honest_promise(
    found: Threshold, bank: MemoryBank, scores: LeaveOneOutScores, *, of_memory: bool, n_added: int = 0
) -> Threshold:
    """Return a threshold that promises no more than the different parts of a memory can prove.

    Args:
        found: The threshold.
        bank: The memory that it is for.
        scores: The memory's leave-one-out scores.
        of_memory: Whether it rests on these, one for each part that was left out; else on one score for each different
            part of a data set.
        n_added: Scores of parts beside the memory's that it rests on.
    """
    promised = promised_parts(bank, scores, None if of_memory else found.n_ok, n_added=n_added)
    n, n_unseen = promised.n, promised.n_unseen
    if n == found.n_ok == n_unseen:
        return found
    bounds = promised.honest(found.bounds)
    counted = f"{found.n_ok} good parts are too few", f"{n} different good part{' is' if n == 1 else 's are'} too few"
    warnings = tuple(text.replace(*counted) for text in found.warnings)
    promise = (
        "nothing is promised about other parts, and false alarms are to be expected"
        if n_unseen < 1
        else f"what is promised rests on {n_unseen} of them"
    )
    return replace(
        found,
        n_ok=n,
        bounds=bounds,
        warnings=(
            *warnings,
            f"The good images show {n} different part{'' if n == 1 else 's'}; the others are near-identical to them, "
            f"as frames of one part are. Their scores say how one part varies, not how parts do: {promise}. "
            "Fit images of at least 20 different parts.",
        ),
    )
