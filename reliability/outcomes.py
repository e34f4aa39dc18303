"""What a proof counts while it runs, and what it came to: its claims with their figures, and what it found wrong."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.demo.client import Answer

_KEPT_FINDINGS, _KEPT_OF_A_KIND = 50, 25


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement that either holds or does not.

    Attributes:
        text: The statement.
        figure: What was measured or counted.
        holds: Whether it holds.
    """

    text: str
    figure: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one proof came to.

    Attributes:
        name: ``kills``, ``fuzz``, ``crowd``, ``hostile_day`` or ``soak``: the block of the page that it fills.
        claims: Its claims.
        figures: Every number, JSON types.
        findings: What was found wrong, in words; the first of them.
    """

    name: str
    claims: Sequence[Claim]
    figures: Mapping[str, Any]
    findings: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        """True when every claim does."""
        return all(claim.holds for claim in self.claims)


@dataclass
class Findings:
    """What went wrong, by kind; safe to share between threads. A kind is counted in full, its words are kept at first.

    Attributes:
        words: The first findings.
        counts: How many there were of each kind.
    """

    words: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, text: str) -> None:
        """Note one."""
        with self._lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            if len(self.words) < _KEPT_FINDINGS and self.counts[kind] <= _KEPT_OF_A_KIND:
                self.words.append(f"{kind}: {text}")

    def extend(self, kind: str, texts: Iterable[str]) -> None:
        """Note several."""
        for text in texts:
            self.add(kind, text)

    def count(self, *kinds: str) -> int:
        """Return how many there were of some kinds; of all without any."""
        with self._lock:
            return sum(number for kind, number in self.counts.items() if not kinds or kind in kinds)


@dataclass
class Tally:
    """What the clients of a proof have seen; what is not in ``findings`` is changed under ``lock``.

    Attributes:
        findings: What went wrong.
        calls: How many calls of each kind were answered.
        busy: How many of them with 503.
        lock: Held while anything here is changed.
    """

    findings: Findings = field(default_factory=Findings)
    calls: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_done(self, kind: str, answer: Answer) -> bool:
        """Count an answer; return whether it is a success. Any status but 200 and 503 is a finding."""
        with self.lock:
            self.calls[kind] += 1
            self.busy += answer.status == 503
        if answer.status not in (200, 503):
            self.findings.add("refused", f"{kind}: {answer}")
        return answer.status == 200
