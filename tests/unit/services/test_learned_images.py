from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backend.artifacts.model_key import ModelKey
from backend.calib import ScoreRule, set_threshold
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import leave_one_out_scores
from backend.services.calibration import calibrated
from backend.services.learned_images import examine, renewal_warnings
from backend.services.promises import with_honest_promise
from backend.storage import ArtefactStore
from tests.testkit.fakes import bank_on_a_line

MAX = ScoreRule(mode="max", percentile=99.0, blur_sigma=0.0, area_mm2_thr=1.0)


def bank_of(n_parts: int, frames_of_each: int) -> MemoryBank:
    """Parts ten apart, the frames of each a tenth apart and said to be near-identical, and scored one by one."""
    groups = [tuple(f"{part:02}-{frame:02}" for frame in range(frames_of_each)) for part in range(n_parts)]
    values = {digest: (10.0 * int(digest[:2]) + 0.1 * int(digest[3:]),) for group in groups for digest in group}
    return bank_on_a_line(values, near_identical=tuple(groups) if frames_of_each > 1 else ())


def calibration_of(bank: MemoryBank, **changes: object):
    return calibrated(bank, leave_one_out_scores(bank, MAX), rule=MAX, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_parts", "frames"), [(1, 25), (2, 12), (4, 2)])
def test_frames_of_few_parts_promise_nothing(n_parts: int, frames: int) -> None:
    bank = bank_of(n_parts, frames)
    found = calibration_of(bank)
    assert (bank.n_parts, bank.n_parts_left_out) == (n_parts, 0)
    assert found.n_ok == n_parts
    assert set(vars(found.bounds).values()) == {1.0}
    assert any("nothing is promised" in text for text in found.warnings)
    assert not any(f"{n_parts * frames} good parts" in text for text in found.warnings)


def test_only_parts_scored_without_any_image_of_theirs_count() -> None:
    frames = {f"frame{n}": (0.1 * n,) for n in range(9)}
    bank = bank_on_a_line({**frames, "x": (50.0,), "y": (60.0,)}, near_identical=(tuple(sorted(frames)),))
    found = calibration_of(bank)
    assert (found.n_ok, found.threshold) == (3, pytest.approx(10.0))
    assert found.bounds.expected_false_alarm_rate == pytest.approx(1 / 3)
    assert any("rests on 2 of them" in text for text in found.warnings)


def test_different_parts_keep_their_promise() -> None:
    bank = bank_of(20, 1)
    scores = leave_one_out_scores(bank, MAX)
    plain = set_threshold(scores.by_part)
    assert with_honest_promise(plain, bank, scores, of_memory=True) is plain


def test_parts_that_are_left_out_together_keep_their_promise() -> None:
    apart = bank_of(6, 3)
    together = bank_on_a_line(
        {digest: (10.0 * int(digest[:2]) + 0.1 * int(digest[3:]),) for digest in apart.image_digests},
        part_ids={digest: f"{digest[:2]}-00" for digest in apart.image_digests},
        near_identical=apart.near_identical,
    )
    assert together.n_parts == together.n_parts_left_out == 6
    found = calibration_of(together)
    assert (found.n_ok, found.bounds.expected_false_alarm_rate) == (6, pytest.approx(1 / 7))
    assert found.threshold > 9


def test_scores_of_a_data_set_promise_no_more_than_the_memory_allows() -> None:
    bank = bank_of(1, 10)
    found = calibration_of(bank, ok_scores=[1.0], scores_from="dataset")
    assert (found.n_ok, found.bounds.expected_false_alarm_rate) == (1, 1.0)
    more = calibration_of(bank, ok_scores=[1.0, 2.0, 3.0, 4.0], scores_from="dataset")
    assert (more.n_ok, more.bounds.expected_false_alarm_rate) == (4, pytest.approx(1 / 4))


def test_scores_that_a_client_sends_are_questioned_where_they_are_more_than_the_parts() -> None:
    text = "The promise holds only if each score is of another part."
    bank = bank_of(1, 10)
    assert any(text in warning for warning in calibration_of(bank, ok_scores=[1.0] * 10).warnings)
    assert not any(text in warning for warning in calibration_of(bank_of(10, 1), ok_scores=[1.0] * 12).warnings)


def test_a_bad_promise_is_not_made_better() -> None:
    bank = bank_of(2, 3)
    scores = leave_one_out_scores(bank, MAX)
    below_all = replace(set_threshold(scores.by_part), threshold=0.0)
    assert with_honest_promise(below_all, bank, scores, of_memory=True).bounds.expected_false_alarm_rate == 1.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extractor_id": "another"}, "the extractor was another and its scores have another scale"),
        ({}, "0 images were learned that the memory before did not know, 0 are no longer in it"),
        ({"image_digests": ("00-00", "01-00", "02-00", "03-00", "x")}, "1 images were learned"),
    ],
)
@pytest.mark.parametrize("threshold", [0.0, 11.2, 100.0])
def test_a_changed_threshold_has_its_reason(
    tmp_path: Path, change: dict[str, object], reason: str, threshold: float
) -> None:
    bank = bank_of(5, 1)
    scores = leave_one_out_scores(bank, MAX)
    new = calibration_of(bank)
    images = ArtefactStore(tmp_path).images(ModelKey(role_id="R", roi_id="r"))
    learned = examine(bank, scores, MAX, new, images)
    before = replace(bank, **change)  # type: ignore[arg-type]
    previous = replace(new, threshold=threshold)
    (text,) = renewal_warnings(previous, new, before, bank, scores, learned, images)
    assert f"from {threshold:.4g} to 10" in text
    assert reason in text or ("largest score" in text and threshold < 10 and "image_digests" in change)
    assert ("%" in text) == (threshold > 0)
    close = replace(new, threshold=10.9)
    assert not list(renewal_warnings(close, new, before, bank, scores, learned, images))
    assert not list(renewal_warnings(None, new, before, bank, scores, learned, images))
    assert not list(renewal_warnings(previous, None, before, bank, scores, learned, images))
