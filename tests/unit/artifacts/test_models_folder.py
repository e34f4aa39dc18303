"""A models folder that has vanished is never taken for a new one, and nothing is made in its place."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts.layout import MARKER
from backend.artifacts.model_key import ModelKey
from backend.errors import StorageFailed
from backend.maintenance.sweeping import sweep
from backend.maintenance.verifying import verify_folder
from backend.services.jobs import Jobs
from backend.storage import ArtefactStore
from tests.testkit.app import Api, answer_of, error_of, ready, running_app
from tests.testkit.fakes import FakeExtractor, plates

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")
ROI = {"role_id": "Inspection", "roi_id": "inspection-1"}


def start(models: Path, **settings: Any) -> Any:
    return running_app(models, loader=ready(FakeExtractor()), **settings)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with start(tmp_path / "models", audit=True) as api:
        answer_of(api.fit(plates([0, 1, 2])))
        answer_of(api.calibrate())
        answer_of(api.infer(plates([9])[0]))
        yield api


def every_call(api: Api) -> dict[str, Any]:
    get, post, delete = api.client.get, api.client.post, api.client.delete
    files = [("images", ("a.png", plates([5])[0], "image/png"))]
    return {
        "infer": lambda: api.infer(plates([9])[0]),
        "infer on another ROI": lambda: api.infer(plates([9])[0], roi_id="never-fitted"),
        "fit": lambda: api.fit(plates([3])),
        "fit of another ROI": lambda: api.fit(plates([3, 4]), roi_id="never-fitted"),
        "calibrate": lambda: api.calibrate(),
        "state": lambda: get("/state", params=ROI),
        "manifest": lambda: get("/manifest", params=ROI),
        "recipes": lambda: get("/recipes"),
        "copy": lambda: post("/recipes/copy", json={"from": "default", "to": "line2"}),
        "remove": lambda: delete("/recipes", params={"recipe_id": "line2"}),
        "upload": lambda: post("/datasets/ok/upload", data=ROI, files=files),
        "list": lambda: get("/datasets/list", params=ROI),
        "file": lambda: get("/datasets/file", params={**ROI, "label": "ok", "filename": f"x-{'0' * 12}.png"}),
        "delete": lambda: delete("/datasets/file", params={**ROI, "label": "ok", "filename": f"x-{'0' * 12}.png"}),
        "clear": lambda: delete("/datasets/clear", params={**ROI, "label": "ok"}),
        "calibrate_dataset": lambda: post("/calibrate_dataset", json=ROI),
        "infer_dataset": lambda: post("/infer_dataset", json=ROI),
        "refit": lambda: post("/refit", json=ROI),
        "versions": lambda: get("/versions", params=ROI),
        "activate": lambda: post("/versions/activate", json={**ROI, "version": 1}),
        "compare": lambda: post("/versions/compare", json={**ROI, "a": 1}),
        "refit of all": lambda: post("/refit", json={}),
        "job": lambda: get(f"/jobs/{'0' * 32}"),
        "a new job": lambda: post("/infer_dataset", json=ROI, headers={"Prefer": "respond-async"}),
        "audit": lambda: get("/audit"),
        "overview": lambda: get("/overview"),
        "decisions": lambda: get("/decisions", params=ROI),
        "stats": lambda: get("/stats", params=ROI),
        "scores": lambda: get("/scores", params=ROI),
        "storage": lambda: get("/storage"),
        "verify": lambda: post("/verify"),
        "backup": lambda: get("/backup", params=ROI),
        "health": lambda: get("/health"),
    }


def moved(models: Path) -> None:
    models.rename(models.with_name("away"))


def unmounted(models: Path) -> None:
    moved(models)
    models.mkdir()


def another_mounted(models: Path) -> None:
    moved(models)
    (models / "Inspection" / "inspection-1").mkdir(parents=True)


def emptied(models: Path) -> None:
    shutil.copytree(models, models.with_name("away"))
    for entry in models.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@pytest.mark.parametrize("vanish", [moved, unmounted, another_mounted, emptied])
def test_every_call_says_that_the_folder_has_vanished_and_makes_no_other(
    api: Api, vanish: Callable[[Path], None]
) -> None:
    vanish(api.models)
    before = sorted(api.models.rglob("*"))
    for name, call in every_call(api).items():
        answer = call()
        if name == "refit of all" and answer.status_code == 422:
            continue
        error = error_of(answer, 503, "storage_failed")
        assert "vanished" in error["error"], name
        assert str(api.models) not in answer.text, name
    with pytest.raises(StorageFailed, match="vanished"):
        sweep(api.client.app.state.service.store)  # type: ignore[attr-defined]
    assert sorted(api.models.rglob("*")) == before
    shutil.rmtree(api.models, ignore_errors=True)
    api.models.with_name("away").rename(api.models)
    answer_of(api.infer(plates([9])[0]))
    assert answer_of(api.fit(plates([4])))["n_ok_total"] == 4
    api.client.app.state.history.flush(60)  # type: ignore[attr-defined]
    told = answer_of(api.client.get("/health"))
    assert told["status"] == "ok" or (vanish is emptied and "audit file was moved" in told["reason"]), told
    assert len(answer_of(api.client.get("/audit"))["entries"]) == 2
    assert verify_folder(api.models) == []


def test_a_folder_that_vanishes_before_the_first_call_is_known_from_the_start(tmp_path: Path) -> None:
    with start(tmp_path / "models") as api:
        answer_of(api.fit(plates([0, 1])))
    with start(tmp_path / "models") as api:
        moved(api.models)
        error_of(api.infer(plates([9])[0]), 503, "storage_failed")


def test_a_folder_of_an_older_version_gets_the_marker_at_the_start_and_a_new_one_with_the_first_write(
    tmp_path: Path,
) -> None:
    with start(tmp_path / "models") as api:
        error_of(api.infer(plates([9])[0]), 400, "memory_not_found")
        assert not api.models.exists()
        answer_of(api.fit(plates([0, 1])))
        assert (api.models / MARKER).read_bytes() == b""
    (api.models / MARKER).unlink()
    with start(tmp_path / "models"):
        assert (api.models / MARKER).exists()
    empty = tmp_path / "mounted and new"
    empty.mkdir()
    with start(empty) as api:
        answer_of(api.client.get("/recipes"))
        assert not list(empty.iterdir())
        answer_of(api.fit(plates([0, 1])))


def test_where_only_the_marker_was_deleted_it_is_made_again(api: Api) -> None:
    (api.models / MARKER).unlink()
    answer_of(api.infer(plates([9])[0]))
    assert (api.models / MARKER).exists()


def test_a_folder_in_which_no_marker_can_be_made_is_known_by_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(tmp_path / "models") as api:
        answer_of(api.fit(plates([0, 1])))
    (api.models / MARKER).unlink()

    def refuse(*_: object) -> None:
        raise StorageFailed("read-only")

    monkeypatch.setattr("backend.artifacts.models_folder.write_atomic", refuse)
    with start(tmp_path / "models") as api:
        answer_of(api.infer(plates([9])[0]))
        answer_of(api.fit(plates([2])))
        unmounted(api.models)
        error_of(api.infer(plates([9])[0]), 503, "storage_failed")


# -- a folder below it that is moved while it is held ---------------------------------------------------------------


def test_whoever_holds_a_lock_whose_file_is_another_one_by_now_stores_nothing_any_more(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "models")
    folder = store.roi_folder(KEY)
    with store.lock(KEY):
        store.write(folder / "calib.json", b"one")
        folder.rename(folder.with_name("moved"))
        other = ArtefactStore(tmp_path / "models")
        with other.lock(KEY, timeout_s=0):  # another process finds no lock, and makes its own
            other.write(folder / "calib.json", b"the other's")
        with pytest.raises(StorageFailed, match="moved or replaced"):
            store.remove(folder / "calib.json")
        with pytest.raises(StorageFailed, match="moved or replaced"):
            store.write(folder / "calib.json", b"two")
    assert (folder / "calib.json").read_bytes() == b"the other's"
    with store.lock(KEY):
        store.write(folder / "calib.json", b"three")


def test_two_new_ids_that_come_to_one_folder_at_the_same_moment_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtefactStore(tmp_path / "models")
    real, calls = store.roi_folder, iter([True])

    def as_it_was_a_moment_ago(key: ModelKey) -> Path:
        found = real(key)
        return found.with_name(found.name.upper()) if next(calls, False) else found

    monkeypatch.setattr(store, "roi_folder", as_it_was_a_moment_ago)
    with pytest.raises(StorageFailed, match="Send the call again"), store.lock(KEY):
        pass
    with store.lock(KEY):
        pass


def test_a_process_whose_folder_of_jobs_was_exchanged_holds_its_mark_in_the_new_one(tmp_path: Path) -> None:
    go_on = threading.Event()
    jobs, others = Jobs(tmp_path / "m" / ".jobs"), Jobs(tmp_path / "m" / ".jobs")

    def work(progress: Callable[[int, int], None]) -> dict[str, Any]:
        assert go_on.wait(60)
        progress(1, 1)
        return {}

    jobs.start("first", lambda _: {})
    (tmp_path / "m" / ".jobs").rename(tmp_path / "m" / "moved")
    job = jobs.start("second", work)
    assert others.get(job.job_id).state in ("queued", "running")
    go_on.set()
    jobs.close()
    assert others.get(job.job_id).state in ("done", "lost")
