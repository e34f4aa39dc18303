"""An audit whose file is moved, removed or exchanged while it is open goes on in a new one, and loses nothing."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from backend.errors import StorageFailed
from backend.services.audit import Audit
from tests.testkit.app import Api, answer_of, error_of, ready, running_app
from tests.testkit.fakes import FakeExtractor, plates
from tests.unit.services.test_audit import ENTRY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "audit.sqlite3"


@pytest.fixture
def audit(path: Path) -> Iterator[Audit]:
    made = Audit(path, keeps=True)
    yield made
    made.close()


def write(audit: Audit, *names: str) -> None:
    for name in names:
        audit.write({**ENTRY, "request_id": name})


def rows(path: Path) -> list[tuple[int, str]]:
    """What a file holds, without what lies beside it: as after a kill, seen by whoever has the file alone."""
    alone = path.with_name("alone.sqlite3")
    shutil.copy(path, alone)
    with closing(sqlite3.connect(alone)) as connection:
        found = connection.execute("SELECT id, request_id FROM decisions ORDER BY id").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    alone.unlink()
    for beside in alone.parent.glob("alone.sqlite3-*"):
        beside.unlink()
    return found


def test_each_decision_is_in_the_file_itself_when_it_is_given(audit: Audit, path: Path) -> None:
    for number in range(1, 4):
        write(audit, str(number))
        assert [name for _, name in rows(path)] == [str(each) for each in range(1, number + 1)]


def test_a_file_that_was_moved_keeps_its_decisions_and_the_next_go_to_a_new_one(
    audit: Audit, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(audit, "1", "2", "3")
    assert audit.troubles() == []
    path.rename(path.with_name("moved.sqlite3"))
    write(audit, "4", "5")
    assert rows(path.with_name("moved.sqlite3")) == [(1, "1"), (2, "2"), (3, "3")]
    assert rows(path) == [(4, "4"), (5, "5")], "later decisions have larger numbers"
    assert [row["request_id"] for row in audit.find(9)] == ["5", "4"]
    assert "was moved or removed" in " ".join(audit.troubles())
    assert "was moved or removed" in caplog.text


@pytest.mark.parametrize("beside", [True, False])
def test_a_file_that_was_removed_is_made_again(audit: Audit, path: Path, beside: bool) -> None:
    write(audit, "1")
    for each in path.parent.glob("audit.sqlite3*") if beside else [path]:
        each.unlink()
    write(audit, "2", "3")
    assert rows(path) == [(2, "2"), (3, "3")]


def test_a_file_that_was_exchanged_is_the_one_that_is_written_and_takes_nothing_of_the_log_of_the_other(
    audit: Audit, path: Path
) -> None:
    with closing(Audit(path.with_name("other.sqlite3"), keeps=True)) as other:
        write(other, "a", "b")
    write(audit, "1")
    path.rename(path.with_name("moved.sqlite3"))
    path.with_name("other.sqlite3").rename(path)
    write(audit, "2")
    assert [name for _, name in rows(path)] == ["a", "b", "2"]
    assert [name for _, name in rows(path.with_name("moved.sqlite3"))] == ["1"]


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_log_that_was_moved_takes_nothing_with_it(audit: Audit, path: Path, suffix: str) -> None:
    write(audit, "1", "2")
    path.with_name(path.name + suffix).rename(path.with_name("moved"))
    write(audit, "3", "4")
    assert [name for _, name in rows(path)] == ["1", "2", "3", "4"]
    assert [row["request_id"] for row in audit.find(9)] == ["4", "3", "2", "1"]


def test_the_folder_that_was_moved_is_made_again(audit: Audit, path: Path) -> None:
    write(audit, "1")
    path.parent.rename(path.parent.with_name("moved"))
    write(audit, "2")
    assert rows(path) == [(2, "2")]
    assert rows(path.parent.with_name("moved") / path.name) == [(1, "1")]


def test_a_file_that_is_moved_in_the_middle_of_a_write_is_not_all_there_is(
    audit: Audit, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(audit, "1")
    looks = iter([lambda: None, lambda: path.rename(path.with_name("moved.sqlite3"))])
    real = type(audit._file).is_in_place.fget
    assert real is not None

    def is_in_place(self: Any) -> bool:
        next(looks, lambda: None)()
        return bool(real(self))

    monkeypatch.setattr(type(audit._file), "is_in_place", property(is_in_place))
    write(audit, "2")
    assert [name for _, name in rows(path)] == ["2"]
    assert [name for _, name in rows(path.with_name("moved.sqlite3"))] == ["1", "2"]


def test_two_processes_that_lose_one_file_go_on_in_one_file(audit: Audit, path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from backend.services.audit import Audit
        from tests.unit.services.test_audit import ENTRY
        audit = Audit(Path(sys.argv[1]), keeps=True)
        for line in sys.stdin:
            audit.write({**ENTRY, "request_id": line.strip()})
            print("kept", flush=True)
        """)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def write_there(name: str) -> None:
            print(name, file=other.stdin, flush=True)
            assert other.stdout is not None
            assert other.stdout.readline() == "kept\n"

        kept: list[set[str]] = []
        for turn in range(4):
            names = [f"{turn}-{each}" for each in "abcd"]
            for one, another in (names[:2], names[2:]):
                write(audit, one)
                write_there(another)
            path.rename(path.with_name(f"moved-{turn}.sqlite3"))
            kept.append(set(names))
        write_there("last")
        write(audit, "of all")
        other.kill()
    for turn, names in enumerate(kept):
        assert {name for _, name in rows(path.with_name(f"moved-{turn}.sqlite3"))} == names
    assert [name for _, name in rows(path)] == ["last", "of all"]


# -- what health says -----------------------------------------------------------------------------------------------


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models", loader=ready(FakeExtractor()), audit=True) as api:
        answer_of(api.fit(plates([0, 1, 2])))
        answer_of(api.infer(plates([9])[0]))
        yield api


def health(api: Api) -> dict[str, Any]:
    return answer_of(api.client.get("/health"))


def test_health_says_that_the_file_was_moved_and_every_answered_decision_is_on_disk(api: Api) -> None:
    assert health(api)["status"] == "ok"
    (api.models / "audit.sqlite3").rename(api.models.with_name("moved.sqlite3"))
    answer_of(api.infer(plates([9])[0]))
    told = health(api)
    assert (told["status"], "audit file was moved" in told["reason"]) == ("degraded", True)
    assert str(api.models) not in told["reason"]
    assert len(rows(api.models / "audit.sqlite3")) == len(rows(api.models.with_name("moved.sqlite3"))) == 1


def overwritten(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be one" * 400)


def without_its_table(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (id)")
        connection.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize("damage", [overwritten, without_its_table])
def test_health_says_that_the_file_is_damaged_before_and_after_an_inspection_has_failed(
    api: Api, damage: Callable[[Path], None]
) -> None:
    damage(api.models / "audit.sqlite3")
    told = health(api)
    assert (told["status"], "audit" in told["reason"]) == ("degraded", True)
    error_of(api.infer(plates([9])[0]), 503, "audit_unavailable")
    assert health(api)["status"] == "degraded"
    for path in api.models.glob("audit.sqlite3*"):
        path.unlink()
    answer_of(api.infer(plates([9])[0]))
    assert "cannot be used" not in (health(api)["reason"] or "")


def test_a_file_in_a_models_folder_that_has_vanished_is_not_made_elsewhere(api: Api) -> None:
    api.models.rename(api.models.with_name("away"))
    audit = api.client.app.state.audit  # type: ignore[attr-defined]
    with pytest.raises(StorageFailed, match="vanished"):
        audit.write(ENTRY)
    assert not api.models.exists()


def test_decisions_are_found_by_an_id_in_any_unicode_form(api: Api) -> None:
    answer_of(api.fit(plates([0, 1]), role_id="Prüfung"))
    answer_of(api.infer(plates([9])[0], role_id="Prüfung"))
    for form in ("NFC", "NFD"):
        found = answer_of(api.client.get("/audit", params={"role_id": unicodedata.normalize(form, "Prüfung")}))
        assert len(found["entries"]) == 1, form
