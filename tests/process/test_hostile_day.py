"""The proof of a bad day in small; and that it sees lies, lost decisions, and what is written where nothing may be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from reliability import hostile_day
from reliability.disturbances import DISTURBANCES
from reliability.health import Answered, Disturbed, Said, lies
from reliability.hostile_day import missing_decisions
from reliability.line_disk import LineDisk

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the proof stops processes and reads /proc"
)

WELL = Said(at_s=100.0, took_s=0.01, status=200, word="ok")
SICK = Said(at_s=100.0, took_s=0.01, status=503, reason="The models folder is gone.")
MOVED = Said(at_s=100.0, took_s=0.01, status=200, word="degraded", reason="The audit file was moved.")
SILENT = Said(at_s=100.0, took_s=2.5, status=0)
REFUSED = [Answered(at_s=99.5 + number / 10, code="storage_full") for number in range(5)]


def during(kind: str, begin_s: float = 90.0, end_s: float = 110.0) -> list[Disturbed]:
    return [Disturbed(kind=kind, begin_s=begin_s, end_s=end_s)]


@pytest.mark.parametrize(
    ("said", "answered", "disturbed", "is_lie"),
    [
        (WELL, [], [], False),
        (SICK, [], [], True),
        (SILENT, [], [], True),
        (SILENT, [], during("lock"), True),
        (SILENT, [], during("stop"), False),
        (WELL, [], during("unmount"), True),
        (WELL, [], during("unmount", begin_s=99.0), False),
        (SICK, [], during("unmount"), False),
        (SICK, [], during("unmount", end_s=99.0), False),
        (SICK, [], during("unmount", end_s=90.5), True),
        (WELL, REFUSED, during("fill"), True),
        (WELL, [*REFUSED, Answered(at_s=100.0)], during("fill"), False),
        (WELL, [], during("fill"), False),
        (MOVED, [], during("audit", 50.0, 55.0), False),
        (MOVED, [], [], True),
        (SICK, [], during("audit", 50.0, 55.0), True),
    ],
)
def test_health_is_judged_by_what_was_done_and_answered(
    said: Said, answered: list[Answered], disturbed: list[Disturbed], is_lie: bool
) -> None:
    assert bool(lies([said], answered, disturbed)) is is_lie


def _audit(path: Path, request_ids: list[str]) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE decisions (request_id TEXT)")
        connection.executemany("INSERT INTO decisions VALUES (?)", [(each,) for each in request_ids])


def test_decisions_that_are_nowhere_or_in_a_file_that_was_moved_before_are_missed(tmp_path: Path) -> None:
    there, away = tmp_path / "audit.sqlite3", tmp_path / "moved-0.sqlite3"
    _audit(away, ["before", "at once", "long after"])
    _audit(there, ["after"])
    decisions = [(1.0, "before"), (10.5, "at once"), (20.0, "after")]
    assert missing_decisions(decisions, [(10.0, away)], there) == []
    assert len(missing_decisions([*decisions, (20.0, "long after")], [(10.0, away)], there)) == 1
    assert len(missing_decisions([*decisions, (2.0, "nowhere")], [(10.0, away)], there)) == 1
    there.unlink()
    assert len(missing_decisions(decisions, [(10.0, away)], there)) == 1


def _write_in_its_place(disk: LineDisk) -> None:
    with disk.away():
        disk.models_dir.mkdir(exist_ok=True)
        (disk.models_dir / "new").write_text("y")


@pytest.mark.parametrize("mounts", [True, False])
def test_the_folder_goes_and_comes_back_and_what_is_written_in_its_place_is_found(tmp_path: Path, mounts: bool) -> None:
    with LineDisk(tmp_path, list, mounts=mounts) as disk:
        (disk.models_dir / "kept").write_text("x")
        with disk.away():
            assert not (disk.models_dir / "kept").exists()
        assert (disk.models_dir / "kept").read_text() == "x"
        with pytest.raises(RuntimeError, match="new"):
            _write_in_its_place(disk)
        assert [path.name for path in disk.models_dir.iterdir()] == ["kept"]
        if disk.is_mounted:
            with disk.full(), pytest.raises(OSError, match="space"):
                (disk.models_dir / "more").write_bytes(bytes(100_000))
            (disk.models_dir / "more").write_bytes(bytes(100_000))


def test_a_day_of_odd_file_times_changes_no_answer(tmp_path: Path) -> None:
    outcome = hostile_day.run(hostile_day.Plan(minutes=0.01, only="times"), tmp_path)
    said = [claim for claim in outcome.claims if "/health" not in claim.text]  # which is judged on a quiet machine
    assert all(claim.holds for claim in said), [*(claim for claim in said if not claim.holds), *outcome.findings]
    assert outcome.figures["disturbances"] == {"times": 1}


def test_a_kind_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="flood"):
        hostile_day.run(hostile_day.Plan(only="stop,flood"), tmp_path)
    assert len(DISTURBANCES) == 9
