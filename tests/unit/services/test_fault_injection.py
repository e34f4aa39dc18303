"""Each call that a write makes on the disk fails, in every way: the old state serves on, and the next write works."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts import files
from backend.artifacts.model_key import ModelKey
from backend.errors import StorageFailed, StorageFull
from backend.extractors.loader import ExtractorLoader
from backend.maintenance.backup import back_up
from backend.maintenance.restoring import restore
from backend.maintenance.sweeping import sweep
from backend.maintenance.verifying import verify_folder
from backend.services.datasets import Datasets, DatasetUpload
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.wiring import build_datasets, build_recipes, build_service
from tests.testkit.app import answer_of, error_of, ready, running_app
from tests.testkit.fakes import FakeExtractor, encoded, good_image, plates
from tests.testkit.faults import FAULTS, Disk, PowerCut

# Which of the calls fail, for each action and fault: every one, or every n-th, from another one on for each fault.
# All at 1 take ten times as long; that was run, too.
EVERY = {("fit", "ENOSPC"): 1, ("fit", "power cut"): 1, ("calibrate", "ENOSPC"): 1, ("upload", "ENOSPC"): 1}
OTHERS_EVERY = 5

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")
PROBE = good_image(99)
MM_PER_PX = 0.2


@dataclass
class Room:
    """A models folder with a service on it."""

    models: Path
    service: InspectionService
    datasets: Datasets

    def state(self) -> tuple[Any, ...]:
        """What a client can see of the ROI."""
        inspection = self.service.infer(KEY, PROBE, mm_per_px=MM_PER_PX)
        listed = self.datasets.list(KEY)
        names = tuple(sorted(image.file_name for label in listed for image in listed[label]))
        return inspection.score, inspection.threshold, inspection.params["memory_checksum"], names


@contextmanager
def opened(models: Path) -> Iterator[Room]:
    settings = Settings(models_dir=models)
    service = build_service(settings, extractor=ExtractorLoader(lambda: (FakeExtractor(), None)))
    try:
        yield Room(models, service, build_datasets(settings, service.store))
    finally:
        service.close()


def fit(room: Room) -> None:
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in (4, 5)]
    room.service.fit_ok(KEY, uploads, mm_per_px=MM_PER_PX)


def refit(room: Room) -> None:
    """A fit that replaces the memory and deletes the images that are no longer learned."""
    uploads = [Upload(name="6.png", data=encoded(good_image(6))), Upload(name="7.png", data=encoded(good_image(7)))]
    room.service.fit_ok(KEY, uploads, mm_per_px=MM_PER_PX, mode="replace")


def calibrate(room: Room) -> None:
    room.service.calibrate(KEY, margin=1.5)


def upload(room: Room) -> None:
    room.datasets.add(KEY, "ng", [DatasetUpload(name=f"{n}.png", data=encoded(good_image(n))) for n in (20, 21)])


def delete(room: Room) -> None:
    for image in room.datasets.list(KEY)["ok"]:
        if image.name == "0":
            room.datasets.delete(KEY, "ok", image.file_name)


def clear(room: Room) -> None:
    room.datasets.clear(KEY, "ok")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted, calibrated ROI."""
    models = tmp_path_factory.mktemp("template") / "models"
    with opened(models) as room:
        uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in range(3)]
        room.service.fit_ok(KEY, uploads, mm_per_px=MM_PER_PX)
        room.service.calibrate(KEY)
    return models


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No log of what is meant to fail, and nothing that waits until it may be swept."""
    monkeypatch.setattr(files, "ABANDONED_S", -1.0)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def fresh(template: Path, tmp_path: Path) -> Path:
    models = tmp_path / "models"
    shutil.rmtree(models, ignore_errors=True)
    shutil.copytree(template, models)
    return models


def strikes(
    template: Path, tmp_path: Path, action: Callable[[Room], None], fault: str
) -> Iterator[tuple[Room, Disk, BaseException | None, tuple[Any, ...], tuple[Any, ...]]]:
    """Yield the room after one call of the action failed, with what was raised, and the states around a good run."""
    with opened(fresh(template, tmp_path)) as room:
        before = room.state()
        with Disk(room.models).failing() as disk:
            action(room)
        after = room.state()
    assert len(disk.calls) >= 6, "there is something to fail"
    stride = EVERY.get((action.__name__, fault), OTHERS_EVERY)
    for at in range(FAULTS.index(fault) % stride, len(disk.calls), stride):
        with opened(fresh(template, tmp_path)) as room:
            raised: BaseException | None = None
            failing = Disk(room.models, fault, at)
            try:
                with failing.failing():
                    action(room)
            except (StorageFull, StorageFailed, PowerCut) as error:
                raised = error
            assert failing.struck
            yield room, failing, raised, before, after


ACTIONS = (fit, refit, calibrate, upload, delete, clear)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_whatever_fails_the_old_state_or_the_new_serves_in_full_and_the_next_call_works(
    template: Path, tmp_path: Path, action: Callable[[Room], None], fault: str
) -> None:
    n_refused = 0
    for room, disk, raised, before, after in strikes(template, tmp_path, action, fault):
        struck = disk.calls[disk._at]
        if fault == "half a write":
            assert raised is None, struck
        if fault in ("ENOSPC", "EIO", "EACCES") and raised is not None:
            assert isinstance(raised, StorageFull if fault == "ENOSPC" else StorageFailed), struck
        with opened(room.models) as restarted:  # in this process and in one that starts now
            seen, again = room.state(), restarted.state()
            assert seen == again, struck
            check(raised, seen, before, after, f"{fault} at {struck}")
            if action is fit:
                check_switch(disk, raised, seen[:3] == after[:3])
            n_refused += raised is not None
            assert {problem.fault for problem in verify_folder(room.models)} <= {"leftover"}, struck
            sweep(restarted.service.store)
            assert verify_folder(room.models) == [], struck
            assert restarted.state() == again, struck
            action(restarted)
            # Images of the old memory stay where nobody could say whether the new one was on the disk.
            assert restarted.state()[: 3 if action is refit else 4] == after[: 3 if action is refit else 4], struck
    if fault in ("ENOSPC", "EIO", "power cut"):
        assert n_refused >= 1


def check(
    raised: BaseException | None, seen: tuple[Any, ...], before: tuple[Any, ...], after: tuple[Any, ...], case: str
) -> None:
    """Memory, threshold and score are of one generation; what was answered is there, what was refused is not."""
    if raised is None:
        assert seen[:3] == after[:3], case
        assert set(seen[3]) - set(before[3]) == set(after[3]) - set(before[3]), case
        return
    assert seen[:3] in (before[:3], after[:3]), case
    if seen[:3] == before[:3] != after[:3] and not isinstance(raised, PowerCut):
        assert seen[3] == before[3], f"{case}: images of a call that failed stayed"
    if seen[:3] == after[:3] != before[:3]:
        assert set(after[3]) <= set(seen[3]), f"{case}: images of the memory in force are gone"
    assert set(seen[3]) <= {*before[3], *after[3]}, case


def check_switch(disk: Disk, raised: BaseException | None, switched: bool) -> None:
    """A fit is in force from its rename on, and refused later only where the rename could not be made durable."""
    struck = disk.calls[disk._at]
    switches = [n for n, call in enumerate(disk.calls) if call == "replace memory.npz"]
    torn = disk._fault == "torn rename" and struck == "replace memory.npz"
    assert switched == (raised is None or (bool(switches) and (disk._at > switches[0] or torn))), struck
    if raised is not None and switched and not torn and not isinstance(raised, PowerCut):
        assert struck in ("open inspection-1", "fsync inspection-1")


@pytest.mark.parametrize("fault", ["ENOSPC", "power cut"])
def test_a_recipe_is_copied_completely_or_not_at_all(template: Path, tmp_path: Path, fault: str) -> None:
    def copy(room: Room) -> None:
        build_recipes(Settings(models_dir=room.models), room.service.store).copy("default", "line2")

    for room, disk, raised, before, _ in strikes(template, tmp_path, copy, fault):
        models = build_recipes(Settings(models_dir=room.models)).contents().get("line2", [])
        assert raised is not None or len(models) == 1
        for key in models:
            assert room.service.store.load(key).bank == room.service.store.load(KEY).bank, disk.calls[disk._at]
            assert len(room.datasets.list(key)["ok"]) == 3
        assert room.state() == before
        assert {problem.fault for problem in verify_folder(room.models)} <= {"leftover"}


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "power cut"])
def test_a_roi_is_restored_in_one_switch(template: Path, tmp_path: Path, fault: str) -> None:
    archive = tmp_path / "backup.zip"
    with opened(fresh(template, tmp_path)) as room:
        refit(room)
        room.service.calibrate(KEY, margin=1.2)
        back_up(room.models, archive)

    def bring_back(room: Room) -> None:
        restore(archive, room.models, replace=True)

    for room, disk, raised, before, after in strikes(template, tmp_path, bring_back, fault):
        seen = room.state()
        assert seen[:3] in (before[:3], after[:3]), disk.calls[disk._at]
        assert raised is not None or seen == after
        assert {problem.fault for problem in verify_folder(room.models)} <= {"leftover"}, disk.calls[disk._at]


def test_over_http_a_full_disk_is_503_and_the_old_state_serves_on(tmp_path: Path) -> None:
    # With an earlier version to give up, one write that fails for space would succeed the second time.
    with running_app(tmp_path / "models", loader=ready(FakeExtractor()), keep_versions=0) as api:
        answer_of(api.fit(plates([0, 1, 2])))
        answer_of(api.calibrate())
        before = answer_of(api.infer(plates([9])[0]))
        for fault, code in (("ENOSPC", "storage_full"), ("EIO", "storage_failed")):
            with Disk(api.models, fault, 3).failing():
                error = error_of(api.fit(plates([3])), 503, code)
            assert str(tmp_path) not in str(error)
            again = answer_of(api.infer(plates([9])[0]))
            assert (again["score"], again["threshold"]) == (before["score"], before["threshold"])
        assert answer_of(api.fit(plates([3])))["n_ok_total"] == 4
