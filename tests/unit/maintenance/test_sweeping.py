"""What a crash leaves is swept behind the running service, and nothing that another process may be writing."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.artifacts import files as artifact_files
from backend.artifacts.files import ABANDONED_S, TEMP_PREFIX, scratch_folder
from backend.artifacts.model_key import ModelKey
from backend.maintenance.sweeping import Upkeep, sweep
from backend.maintenance.verifying import verify_folder
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.services.jobs import Jobs
from backend.storage import ArtefactStore
from tests.testkit.app import answer_of, ready, running_app
from tests.testkit.fakes import FakeExtractor, bank_on_a_line, encoded, good_image, plates

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")
DEADLINE_S = 20.0


def files_of(models: Path) -> set[str]:
    return {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}


def age(path: Path, seconds: float = ABANDONED_S + 1) -> Path:
    then = time.time() - seconds
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then))
    return path


def left(models: Path, name: str = f"Inspection/inspection-1/{TEMP_PREFIX}0123456789abcdef") -> Path:
    path = models / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half a file")
    return age(path)


@pytest.fixture
def fitted(service: InspectionService) -> ArtefactStore:
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in range(2)]
    service.fit_ok(KEY, uploads, mm_per_px=0.2)
    return service.store


@pytest.mark.parametrize(
    "place",
    [
        "Inspection/inspection-1/{}",
        "Inspection/inspection-1/images/ok/{}",
        "Inspection/inspection-1/embeddings/0123456789abcdef/{}",
        "Inspection/inspection-1/keys/other/{}",
        "recipes/line2/Inspection/inspection-1/{}",
        "recipes/{}/line2/Inspection/inspection-1/memory.npz",
        ".jobs/{}",
        "{}",
        "{}/Inspection/inspection-1/memory.npz",
        ".engines/{}/draft/model.bin",
    ],
)
def test_temporary_files_and_folders_of_nobody_are_swept_wherever_they_lie(fitted: ArtefactStore, place: str) -> None:
    before = files_of(fitted.models_dir)
    left(fitted.models_dir, place.format(TEMP_PREFIX + "a1b2"))
    for folder in fitted.models_dir.rglob(f"{TEMP_PREFIX}*"):
        age(folder)
    assert {problem.fault for problem in verify_folder(fitted.models_dir)} == {"leftover"}
    assert sum(sweep(fitted).values()) == 1
    assert files_of(fitted.models_dir) == before
    assert verify_folder(fitted.models_dir) == []


def test_a_file_that_somebody_may_be_writing_is_left_alone(fitted: ArtefactStore) -> None:
    temp = left(fitted.models_dir)
    age(temp, ABANDONED_S - 60)
    assert not sweep(fitted)
    assert verify_folder(fitted.models_dir) == []


def test_what_is_held_by_a_lock_is_left_alone_whatever_its_age(
    fitted: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeper = ArtefactStore(fitted.models_dir)
    left_over = left(fitted.models_dir)  # beside a ROI that somebody works on
    age(left_over)
    with fitted.lock(KEY):
        assert not sweep(sweeper)
    assert left_over.exists()

    with scratch_folder(fitted.models_dir / "recipes") as scratch:
        (scratch / "memory.npz").write_bytes(b"copied")
        age(scratch)
        sweep(sweeper)
        assert (scratch / "memory.npz").exists()
    assert not left_over.exists()

    written: list[bool] = []

    def late(temp: Path, target: Path) -> None:  # of a process that was stopped for a day
        age(temp)
        sweep(sweeper)
        written.append(temp.exists())
        temp.replace(target)

    monkeypatch.setattr(artifact_files, "replace", late)
    fitted.write(fitted.models_dir / ".jobs" / f"{'a' * 32}.json", b"{}")
    assert written == [True]


def test_images_without_facts_and_embeddings_without_an_image_are_swept(fitted: ArtefactStore) -> None:
    before = files_of(fitted.models_dir)
    roi = fitted.roi_folder(KEY)
    (made_by,) = (roi / "embeddings").iterdir()
    (roi / "images" / "ok" / f"{'a' * 64}.png").write_bytes(encoded(good_image(7)))
    (roi / "images" / "ng").mkdir()
    (roi / "images" / "ng" / f"{'b' * 64}.jpg").write_bytes(b"half")
    (made_by / f"{'c' * 64}.npy").write_bytes(b"rows")
    facts = sorted((roi / "images" / "ok").glob("*.json"))[0]
    aside = facts.rename(facts.with_name(f"{facts.name}.corrupt-20261122T185500Z"))  # whose image is described
    assert sweep(fitted) == {"files of images that were never stored": 3}
    aside.rename(facts)
    assert files_of(fitted.models_dir) == before


def test_a_roi_that_somebody_holds_is_passed_over(fitted: ArtefactStore) -> None:
    orphan = fitted.roi_folder(KEY) / "images" / "ok" / f"{'a' * 64}.png"
    orphan.write_bytes(b"an upload that is just being stored")
    with fitted.lock(KEY):
        assert not sweep(ArtefactStore(fitted.models_dir))
        assert orphan.exists()
    assert sweep(ArtefactStore(fitted.models_dir))
    assert not orphan.exists()


def test_an_index_that_a_crash_has_taken_is_written_again(fitted: ArtefactStore) -> None:
    index = fitted.roi_folder(KEY) / "index.faiss"
    whole = index.read_bytes()
    index.rename(index.with_name(f"{TEMP_PREFIX}index.faiss"))
    age(index.with_name(f"{TEMP_PREFIX}index.faiss"))
    assert sweep(fitted) == {"temporary files": 1, "indices that were written again": 1}
    assert index.read_bytes() == whole
    assert not sweep(fitted)


def test_marks_of_processes_that_are_gone_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "models" / ".jobs"
    held = threading.Event()
    jobs = Jobs(folder)
    jobs.start("fit_ok", lambda _: {"ended": held.wait(DEADLINE_S)})
    (living,) = folder.glob("*.alive")
    gone = [folder / f"{'f' * 32}.alive", folder / f"{'e' * 32}.cancel"]
    for mark in gone:
        mark.touch()
    try:
        store = ArtefactStore(tmp_path / "models")
        assert not sweep(store), "they may be just in the making"
        for mark in (living, *gone):
            age(mark)
        assert sweep(store) == {"temporary files": 2}
        assert [living.exists(), *(mark.exists() for mark in gone)] == [True, False, False]
    finally:
        held.set()
        jobs.close()
    assert verify_folder(tmp_path / "models") == []


def test_what_is_not_ours_is_never_swept(fitted: ArtefactStore) -> None:
    for name in ("notes.txt", "Inspection/inspection-1/memory.npz.bak", "Inspection/inspection-1/images/ok/readme.md"):
        left(fitted.models_dir, name)
    before = files_of(fitted.models_dir)
    assert not sweep(fitted)
    assert files_of(fitted.models_dir) == before


def test_sweeping_an_absent_folder_makes_none(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "models")
    assert not sweep(store)
    assert not (tmp_path / "models").exists()


# -- in the background of a service -------------------------------------------------------------------------------


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_a_service_sweeps_when_it_starts_and_its_log_says_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_app(tmp_path / "models", loader=ready(FakeExtractor())) as api:
        answer_of(api.fit(plates([0, 1])))
    temp = left(tmp_path / "models")
    with caplog.at_level(logging.INFO), running_app(tmp_path / "models", loader=ready(FakeExtractor())) as api:
        wait(lambda: not temp.exists())
        wait(lambda: "swept what a crash had left: 1 temporary files" in caplog.text)
        answer_of(api.infer(plates([9])[0]))


def test_upkeep_goes_round_again_and_ends_when_it_is_closed(store: ArtefactStore, key: ModelKey) -> None:
    Upkeep(store).close()  # one that was never started
    upkeep = Upkeep(store, round_s=0.01)
    upkeep.start()
    wait(lambda: store.disk.used_bytes is not None)
    ArtefactStore(store.models_dir).save_bank(key, bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0)}))
    wait(lambda: (store.disk.used_bytes or 0) > 1000)
    path = store.roi_folder(key) / "memory.npz"
    path.rename(path.with_name("memory.npz.corrupt-20261122T185500Z"))  # as another process does
    wait(lambda: store.quarantine.reason is not None)
    ArtefactStore(store.models_dir).save_bank(key, bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0)}))
    wait(lambda: store.quarantine.reason is None)
    upkeep.close()


def test_a_folder_that_cannot_be_walked_ends_no_upkeep(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = threading.Event()
    walk = os.scandir

    def scandir(path: object) -> object:
        if not broken.is_set():
            broken.set()
            raise OSError(5, "Input/output error")
        return walk(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    upkeep = Upkeep(store, round_s=0.01)
    upkeep.start()
    wait(lambda: store.disk.used_bytes is not None)
    upkeep.close()
    assert "cannot be looked over" in caplog.text
