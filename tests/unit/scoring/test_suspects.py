from __future__ import annotations

import numpy as np
import pytest

from backend.calib import ScoreRule
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import leave_one_out_scores
from backend.scoring.suspects import MIN_PARTS, Suspect, find_suspects
from tests.testkit.fakes import bank_on_a_line

MAX = ScoreRule(mode="max", percentile=99.0, blur_sigma=0.0, area_mm2_thr=0.04)
"""A pixel of these banks has 0.04 mm², so all statistics of one of them are its distance."""


def bank_with_distances(distances: dict[str, float], **others: object) -> MemoryBank:
    """Images of one cell in pairs that far apart: each is all that is near the other, so it scores that distance."""
    values: dict[str, tuple[float]] = {}
    for n, (name, distance) in enumerate(sorted(distances.items())):
        values[f"{name}"] = (100.0 * n,)
        values[f"{name}'"] = (100.0 * n + distance,)
    return bank_on_a_line(values, **others)  # type: ignore[arg-type]


def found(bank: MemoryBank) -> list[Suspect]:
    return list(find_suspects(bank, leave_one_out_scores(bank, MAX), MAX))


USUAL = {f"good{n}": 1.0 + 0.05 * n for n in range(9)}


def test_nobody_is_named_where_scores_are_alike() -> None:
    assert found(bank_with_distances(USUAL)) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_long_upper_tail_is_no_suspicion(seed: int) -> None:
    draws = np.random.default_rng(seed).lognormal(0, 0.2, 30)
    assert found(bank_with_distances({f"{n:02}": float(value) for n, value in enumerate(draws)})) == []


def test_what_stands_out_is_named_with_how_far() -> None:
    suspects = found(bank_with_distances({**USUAL, "bad": 3.6}))
    assert [suspect.digest for suspect in suspects] == ["bad", "bad'"]
    median = float(np.median([*USUAL.values(), *USUAL.values(), 3.6]))
    assert suspects[0].score == pytest.approx(3.6)
    assert suspects[0].times_median == pytest.approx(3.6 / median, rel=1e-4)


def test_two_that_stand_out_do_not_hide_each_other_and_the_farther_comes_first() -> None:
    usual = {f"good{n:02}": 1.0 + 0.02 * n for n in range(25)}
    suspects = found(bank_with_distances({**usual, "bad": 4.0, "worse": 9.0}))
    assert [suspect.digest for suspect in suspects] == ["worse", "worse'", "bad", "bad'"]


def test_too_few_parts_say_nothing_of_what_is_usual() -> None:
    few = {f"good{n}": 1.0 for n in range(MIN_PARTS // 2 - 1)}
    assert found(bank_with_distances({**few, "bad": 50.0})) == []
    assert found(bank_with_distances({**few, "more": 1.0, "bad": 50.0})) != []


def test_images_beside_their_own_part_are_passed_over() -> None:
    # Ten frames of one part score next to nothing; that is no reason to suspect the only two others.
    frames = {f"frame{n}": (0.001 * n,) for n in range(10)}
    bank = bank_on_a_line({**frames, "x": (50.0,), "y": (60.0,)}, near_identical=(tuple(sorted(frames)),))
    assert bank.scored_beside_own_part == set(frames)
    assert found(bank) == []


def test_images_of_one_part_are_compared_with_other_parts_only() -> None:
    values = {f"good{n}": (float(n),) for n in range(10)}
    bad = {f"bad{n}": (100.0 + 0.01 * n,) for n in range(5)}
    bank = bank_on_a_line({**values, **bad}, part_ids=dict.fromkeys(bad, "bad"))
    assert {suspect.digest for suspect in found(bank)} == set(bad)
