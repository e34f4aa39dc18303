"""What was in force at a model before: kept through crashes and full disks, and never in the way of anything new."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts import files
from backend.artifacts.formats import switching_bytes
from backend.artifacts.layout import classify_path
from backend.artifacts.model_key import ModelKey
from backend.artifacts.versions import Version, version_bytes, version_from_bytes
from backend.errors import (
    ArtefactCorrupt,
    ArtefactOutdated,
    InspectionError,
    NotFound,
    StorageFailed,
    StorageFull,
)
from backend.extractors.loader import ExtractorLoader
from backend.maintenance.backup import back_up
from backend.maintenance.restoring import restore
from backend.maintenance.sweeping import sweep
from backend.maintenance.verifying import verify_folder
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.services.recipes import Recipes
from backend.settings import Settings
from backend.storage import ArtefactStore, save
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor, encoded, good_image
from tests.testkit.faults import Disk, PowerCut
from tests.testkit.older_files import older_calibration, older_memory

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")
ROI = "Inspection/inspection-1"
PROBE = good_image(99)
MM_PER_PX = 0.2


def opened(models: Path, **settings: Any) -> InspectionService:
    chosen = Settings(models_dir=models, **settings)
    return build_service(chosen, extractor=ExtractorLoader(lambda: (FakeExtractor(), None)))


def fit(service: InspectionService, *seeds: int, key: ModelKey = KEY, **fields: Any) -> None:
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in seeds]
    service.fit_ok(key, uploads, mm_per_px=MM_PER_PX, **fields)


def answer(service: InspectionService, key: ModelKey = KEY) -> tuple[Any, ...]:
    """What an inspection answers, and whether the ROI counts as calibrated."""
    found = service.infer(key, PROBE, mm_per_px=MM_PER_PX)
    stale = service.describe(key).stale
    return found.score, found.threshold, found.params["memory_checksum"], found.params["score_mode"], stale


def kept(models: Path, roi: str = ROI) -> list[str]:
    return sorted(path.name for path in (models / roi / "versions").glob("*"))


def numbers(service: InspectionService, key: ModelKey = KEY) -> list[tuple[int, bool]]:
    return [(each.version.number, each.in_force) for each in service.versions.listed(key)]


def bytes_of(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and not set(path.parts) & set(without)
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ROI with five versions: uncalibrated, calibrated, another memory, set by hand, and a third memory."""
    models = tmp_path_factory.mktemp("template") / "models"
    service = opened(models)
    fit(service, 0, 1, 2)
    service.calibrate(KEY)
    fit(service, 3, 4)
    service.calibrate(KEY, threshold=0.5, score_mode="max")
    fit(service, 5)
    service.close()
    return models


@pytest.fixture
def models(template: Path, tmp_path: Path) -> Path:
    return fresh(template, tmp_path)


def fresh(template: Path, tmp_path: Path) -> Path:
    models = tmp_path / "models"
    shutil.rmtree(models, ignore_errors=True)
    shutil.copytree(template, models)
    return models


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --- crashes ----------------------------------------------------------------------------------------------------------


def recalibrate(service: InspectionService) -> None:
    service.calibrate(KEY, margin=2.0, reason="another margin")


def refit(service: InspectionService) -> None:
    fit(service, 7, 8)


def to_first(service: InspectionService) -> None:
    """From a calibrated memory to one that never was: its calibration must go with the switch, and not before."""
    service.versions.activate(KEY, 1)


def to_second(service: InspectionService) -> None:
    service.versions.activate(KEY, 2)


def to_fourth(service: InspectionService) -> None:
    service.versions.activate(KEY, 4)


# Every which call fails; all of them take ten minutes, and were run, too.
STRIDES = {"power cut": 4, "ENOSPC": 9}
ACTIONS = (recalibrate, refit, to_first, to_second, to_fourth)


@pytest.mark.parametrize("fault", ["power cut", "ENOSPC", "EIO", "torn rename"])
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_a_switch_that_is_cut_off_anywhere_was_made_or_was_not_and_loses_no_version(
    template: Path,
    tmp_path: Path,
    action: Callable[[InspectionService], None],
    fault: str,
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "ABANDONED_S", -1.0)
    service = opened(fresh(template, tmp_path))
    before = answer(service)
    with Disk(tmp_path / "models").failing() as disk:
        action(service)
    after, n_calls = answer(service), len(disk.calls)
    service.close()
    stride = STRIDES.get(fault, 11)
    seen = set()
    for at in range(0, n_calls, stride):
        models = fresh(template, tmp_path)
        service = opened(models)
        failing, raised = Disk(models, fault, at), None
        try:
            with failing.failing():
                action(service)
        except (StorageFull, StorageFailed, PowerCut) as error:
            raised = error
        struck = failing.calls[at]
        found = answer(service)
        assert found in (before, after), struck
        assert raised is not None or found == after, struck
        assert {problem.fault for problem in verify_folder(models)} <= {"leftover"}, struck
        listed = service.versions.listed(KEY)
        (in_force,) = [each for each in listed if each.in_force]
        assert (in_force.version.number == 5) == (found == before), struck
        service.close()
        restarted = opened(models)
        sweep(restarted.store)
        assert verify_folder(models) == [], struck
        assert answer(restarted) == found, struck
        present = [each.version.number for each in restarted.versions.listed(KEY)]
        # A disk that fails may cost a version, a crash never does; a full one takes the oldest.
        wanted = {1, 2, 3, 4, 5} - ({1, 5} if fault != "power cut" else set())
        assert wanted <= {*present}, struck
        for number in present:
            restarted.versions.stored(KEY, number)
        if action is not to_first or 1 in present:
            action(restarted)
            assert answer(restarted) == after, struck
        seen.add(found == after)
        restarted.close()
    assert seen == {True, False} or fault != "power cut", "some were cut off before the switch, some after it"


def test_what_begins_a_switch_holds_for_each_memory_what_is_its_own(models: Path) -> None:
    service = opened(models)
    before, calib = answer(service), models / ROI / "calib.json"
    first = service.versions.stored(KEY, 1)
    text = calib.read_text("utf-8")
    calib.write_bytes(switching_bytes(text, first.version.memory.digest, None))
    assert answer(service) == before, "the memory in force keeps its calibration"
    (models / ROI / "memory.npz").write_bytes(first.data)
    assert answer(service)[1] is None
    assert not service.describe(KEY).stale, "nothing of the other memory's is left"
    fit(service, 9)
    assert service.describe(KEY).calibrations == ()
    assert calib.exists() is False, "nor after the next fit"
    data = switching_bytes(text, first.version.memory.digest, None)
    for at in range(0, len(data), 97):
        calib.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert "damaged" in {problem.fault for problem in verify_folder(models)}


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_memory_is_stored_once_however_many_versions_share_it(models: Path) -> None:
    service = opened(models)
    assert [name for name in kept(models) if name.endswith(".npz")].__len__() == 2
    for margin in (1.1, 1.2, 1.3):
        service.calibrate(KEY, margin=margin)
    assert [name for name in kept(models) if name.endswith(".npz")].__len__() == 2
    assert [name for name in kept(models) if name.endswith(".json")].__len__() == 8


@pytest.mark.parametrize("can_link", [True, False])
def test_a_memory_is_kept_where_the_file_system_has_no_hard_links(
    template: Path, tmp_path: Path, can_link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(95, "Operation not supported")

    models = fresh(template, tmp_path)
    if not can_link:
        monkeypatch.setattr(os, "link", refuse)
    service = opened(models)
    old = (models / ROI / "memory.npz").read_bytes()
    before = answer(service)
    fit(service, 8)
    assert old in bytes_of(models / ROI / "versions").values()
    service.versions.activate(KEY, 5)
    assert (models / ROI / "memory.npz").read_bytes() == old
    assert answer(service) == before
    assert verify_folder(models) == []


def test_no_more_are_kept_than_the_setting_says_and_a_lower_one_takes_the_oldest(models: Path) -> None:
    service = opened(models, keep_versions=3)
    fit(service, 8)
    assert numbers(service) == [(6, True), (5, False), (4, False), (3, False)]
    service.close()
    lower = opened(models, keep_versions=1)
    assert len(numbers(lower)) == 4, "nothing is deleted before somebody writes, or sweeps"
    before = answer(lower)
    assert sweep(lower.store)["files of versions that are not kept"] >= 2
    assert numbers(lower) == [(6, True), (5, False)]
    assert (answer(lower), sweep(lower.store)) == (before, {})
    lower.close()
    none = opened(models, keep_versions=0)
    none.calibrate(KEY, margin=1.5, reason="alone")
    assert numbers(none) == [(7, True)]
    assert [name for name in kept(models) if name.endswith(".npz")] == []
    assert none.versions.listed(KEY)[0].version.reason == "alone", "why it is as it is stays"
    assert verify_folder(models) == []


def test_what_no_version_describes_is_described_by_its_files(models: Path) -> None:
    service = opened(models)
    before = answer(service)
    shutil.rmtree(models / ROI / "versions")
    (only,) = service.versions.listed(KEY)
    assert (only.version.number, only.version.kind, only.in_force) == (1, "fit", True)
    service.calibrate(KEY, margin=1.5)
    fit(service, 8)
    assert numbers(service) == [(3, True), (2, False), (1, False)]
    service.versions.activate(KEY, 1)
    assert answer(service) == before


def test_scripts_leave_versions_too(tmp_path: Path) -> None:
    from tests.testkit.fakes import bank_on_a_line

    for seed in range(3):
        bank = bank_on_a_line({f"{seed}{image}".ljust(64, "0"): (seed, image, 5.0) for image in range(3)})
        save("r", "i", bank, models_dir=tmp_path / "models")
    versions, in_force = ArtefactStore(tmp_path / "models").versions(ModelKey(role_id="r", roi_id="i")).listed()
    assert ([each.number for each in versions], in_force) == ([3, 2, 1], 3)


@pytest.mark.parametrize(
    "key",
    [
        ModelKey(role_id="检查 Prüfung", roi_id="деталь:1?"),
        ModelKey(role_id="Inspection", roi_id="inspection-1", model_key="night shift ☾"),
        ModelKey(role_id="Inspection", roi_id="versions", recipe_id="summer"),
        ModelKey(role_id="r", roi_id="CON", recipe_id="summer", model_key="versions"),
    ],
    ids=str,
)
def test_versions_of_any_id_recipe_and_model_key(tmp_path: Path, key: ModelKey) -> None:
    service = opened(tmp_path / "models")
    fit(service, 0, 1, 2, key=key)
    service.calibrate(key)
    before = answer(service, key)
    fit(service, 3, key=key)
    archive = tmp_path / "backup.zip"
    assert back_up(tmp_path / "models", archive) == {key.roi: []}
    service.versions.activate(key, 2, reason="zurück")
    assert answer(service, key) == before
    assert verify_folder(tmp_path / "models") == []
    if not key.is_default_model:
        assert service.versions.listed(key.roi) == [], "each model has its own"
    restore(archive, tmp_path / "elsewhere")
    other = opened(tmp_path / "elsewhere")
    assert numbers(other, key) == [(3, True), (2, False), (1, False)]
    other.versions.activate(key, 2)
    assert answer(other, key) == before
    assert verify_folder(tmp_path / "elsewhere") == []


# --- damage -----------------------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])


def test_a_damaged_version_is_set_aside_and_harms_nothing_else(models: Path, quiet: None, tmp_path: Path) -> None:
    service = opened(models)
    before = answer(service)
    wanted = service.versions.stored(KEY, 2).version
    damage(models / ROI / "versions" / wanted.memory_name)
    with pytest.raises(ArtefactCorrupt, match=r"Version 2 is damaged.*What is in force is not affected"):
        service.versions.activate(KEY, 2)
    assert (answer(service), service.store.quarantine.reason) == (before, None)
    assert any(".corrupt-" in name for name in kept(models))
    assert "set_aside" in {problem.fault for problem in verify_folder(models)}
    assert [each.note is None for each in service.versions.listed(KEY)] == [True, True, True, False, False]
    with pytest.raises(NotFound, match="version 2 is gone"):
        service.versions.activate(KEY, 2)
    left_out: list[Any] = []
    assert back_up(models, tmp_path / "b.zip", left_out=lambda *each: left_out.append(each)) == {KEY: []}
    assert left_out, "the ROI is saved, and what is damaged of its versions is named"
    restore(tmp_path / "b.zip", tmp_path / "elsewhere")
    assert verify_folder(tmp_path / "elsewhere") == []
    sweep(service.store)
    assert numbers(service) == [(5, True), (4, False), (3, False)]
    service.versions.activate(KEY, 4)


def test_a_damaged_record_is_set_aside_and_harms_nothing_else(models: Path, quiet: None, tmp_path: Path) -> None:
    service = opened(models)
    before = answer(service)
    for name in kept(models):
        if name.startswith(("1-", "3-", "5-")):
            damage(models / ROI / "versions" / name)
    assert numbers(service) == [(5, True), (4, False), (2, False)], "what is in force is described by its files"
    assert (answer(service), service.store.quarantine.reason) == (before, None)
    assert back_up(models, tmp_path / "b.zip") == {KEY: []}
    service.versions.activate(KEY, 4)
    assert numbers(service)[0] == (6, True)


def test_a_version_brings_back_what_was_damaged(models: Path, quiet: None) -> None:
    service = opened(models)
    before = answer(service)
    for name in ("memory.npz", "calib.json"):
        damage(models / ROI / name)
        with pytest.raises(ArtefactCorrupt):
            answer(service)
        assert [each for each in numbers(service) if each[1]] == [(numbers(service)[0][0], True)]
        service.versions.activate(KEY, 4)
        assert answer(service)[1] == 0.5
        assert service.store.quarantine.reason is None
        fit(service, 5)
        assert answer(service) == before
    damage(models / ROI / "calib.json")
    with pytest.raises(ArtefactCorrupt):
        answer(service)
    service.versions.activate(KEY, 1)
    assert answer(service)[1] is None, "never calibrated is not damaged"
    with opened(models).store.lock(KEY):
        pass


def test_a_version_of_an_older_format_says_what_to_do(models: Path, tmp_path: Path) -> None:
    service = opened(models)
    bank = service.describe(KEY).bank
    assert bank is not None
    (models / ROI / "memory.npz").write_bytes(older_memory(bank, 2))
    (models / ROI / "calib.json").write_bytes(older_calibration(2))
    with pytest.raises(ArtefactOutdated):
        answer(service)
    service.refitter.refit(KEY)
    after = answer(service)
    newest, older, *_ = service.versions.listed(KEY)
    assert (newest.version.kind, newest.note) == ("refit", None)
    assert older.note is not None
    assert "older version of this service" in older.note
    with pytest.raises(ArtefactOutdated, match=r"older version of this service.*Fit the ROI again"):
        service.versions.activate(KEY, older.version.number)
    assert answer(service) == after
    assert verify_folder(models) == [], "nothing is to be done about it"
    assert back_up(models, tmp_path / "b.zip") == {KEY: []}
    restore(tmp_path / "b.zip", tmp_path / "elsewhere")


def test_a_calibration_alone_of_an_older_format_is_no_way_back_either(models: Path) -> None:
    service = opened(models)
    (models / ROI / "calib.json").write_bytes(older_calibration(2, memory_checksum=service.describe(KEY).bank.checksum))
    fit(service, 8)
    outdated = service.versions.listed(KEY)[1]
    assert outdated.note is not None
    with pytest.raises(ArtefactOutdated):
        service.versions.activate(KEY, outdated.version.number)


def test_the_bytes_of_a_record_cannot_change_unnoticed(models: Path) -> None:
    (path,) = (models / ROI / "versions").glob("4-*.json")
    data = path.read_bytes()
    version = version_from_bytes(data)
    assert version_bytes(version) == data
    for at in range(0, len(data), 7):
        with pytest.raises(ValueError, match=r"."):
            version_from_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize(
    "changes",
    [
        {"calib": "{}"},
        {"calib": '{"threshold":"x"}'},
        {"calib": "[" * 100_000},
        {"at": "yesterday"},
        {"at": "2026-03-11T09:26:53"},
        {"number": 0},
        {"number": True},
        {"number": 10**9},
        {"kind": "wish"},
        {"reason": 7},
        {"activates": "1"},
    ],
    ids=str,
)
def test_a_record_that_was_made_by_hand_is_none(models: Path, changes: dict[str, Any]) -> None:
    (path,) = (models / ROI / "versions").glob("4-*.json")
    version = version_from_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"record|isoformat"):
        version_from_bytes(version_bytes(dataclasses.replace(version, **changes)))


# --- room -------------------------------------------------------------------------------------------------------------


def used(models: Path) -> int:
    return sum(path.stat().st_size for path in models.rglob("*") if path.is_file())


def test_versions_make_room_under_a_limit_the_oldest_first(models: Path, quiet: None) -> None:
    plain = opened(models)
    fit(plain, 8)
    whole = used(models)
    service = opened(models, max_disk_gb=(whole + 1_000) / 1e9)
    for seed in range(10, 16):  # images and embeddings of each take what versions have to give
        try:
            fit(service, seed)
        except StorageFull:
            break
    fitted = service.describe(KEY)
    assert used(models) <= whole + 1_000
    left = numbers(service)
    assert left[0][1], "what is in force stays"
    assert left == sorted(left, reverse=True)
    assert (1, False) not in left
    assert fitted.bank is not None
    assert verify_folder(models) == []


def test_a_fit_that_fits_without_versions_fits_with_them(template: Path, tmp_path: Path, quiet: None) -> None:
    bare = fresh(template, tmp_path)
    shutil.rmtree(bare / ROI / "versions")
    with_none = opened(bare, keep_versions=0)
    fit(with_none, 8, 9)
    needed, wanted = used(bare) + 3_000, answer(with_none)  # its record, and a margin
    for name in ("linked", "copied"):
        models = fresh(template, tmp_path / name)
        other = models / "Inspection" / "other"
        service = opened(models, max_disk_gb=needed / 1e9)
        assert used(models) > needed
        if name == "copied":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "no links")))
                fit(service, 8, 9)
        else:
            fit(service, 8, 9)
        assert answer(service) == wanted
        assert used(models) <= needed
        assert not other.exists()
        assert verify_folder(models) == []


def test_versions_of_other_rois_make_room_too(models: Path, quiet: None) -> None:
    other = ModelKey(role_id="Inspection", roi_id="other", recipe_id="summer")
    service = opened(models)
    fit(service, 0, 1, 2, key=other)
    service.close()
    limited = opened(models, max_disk_gb=(used(models) + 10) / 1e9)
    before = answer(limited)
    image = encoded(good_image(60))
    size = sum(path.stat().st_size for path in (models / ROI / "versions").iterdir())
    assert len(image) < size
    limited.store.write(models / "recipes" / "summer" / "Inspection" / "other" / "x", image)
    assert len(numbers(limited)) < 5
    assert answer(limited) == before


def test_nothing_is_given_up_for_what_has_no_room_anyway(models: Path, quiet: None) -> None:
    service = opened(models, max_disk_gb=(used(models) + 10) / 1e9)
    before = kept(models)
    with pytest.raises(StorageFull):
        service.store.write(models / ROI / "x", b"x" * 10_000_000)
    assert kept(models) == before


def test_a_disk_that_is_really_full_gets_room_from_versions(
    models: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    capacity = used(models) + 20
    real = os.write

    def write(descriptor: int, data: Any) -> int:
        if used(models) + len(data) > capacity:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    service = opened(models)
    before = answer(service)
    monkeypatch.setattr(os, "write", write)
    service.store.write(models / ROI / "x", b"x" * 1_000)
    monkeypatch.undo()
    assert len(numbers(service)) < 5
    assert answer(service) == before
    assert verify_folder(models)[0].fault == "unknown"


def test_a_version_that_cannot_be_kept_is_a_warning_and_the_fit_succeeds(
    models: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = opened(models)

    def refuse(*_: Any) -> None:
        raise StorageFailed("The disk is read-only.")

    monkeypatch.setattr("backend.artifacts.roi_files.give_second_name", refuse)
    uploads = [Upload(name="8.png", data=encoded(good_image(8)))]
    report = service.fit_ok(KEY, uploads, mm_per_px=MM_PER_PX)
    assert any("could not be kept" in warning for warning in report.warnings)
    assert answer(service)[2] == report.bank.checksum
    monkeypatch.undo()
    fit(service, 9)
    assert verify_folder(models) == []


# --- at the same time -------------------------------------------------------------------------------------------------


def test_fits_calibrations_and_activations_at_once_come_one_after_the_other(models: Path) -> None:
    service = opened(models, keep_versions=50)
    states: dict[int, tuple[Any, ...]] = {}
    errors: list[BaseException] = []
    wanted = {answer(service)}
    done = threading.Event()

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except InspectionError as error:
            errors.append(error)

    def watch() -> None:
        while not done.is_set():
            wanted.add(answer(service))

    watcher = threading.Thread(target=watch)
    watcher.start()
    actions: list[Callable[[], object]] = [lambda seed=seed: fit(service, seed) for seed in range(20, 24)]
    actions += [lambda number=number: service.versions.activate(KEY, number) for number in (1, 2, 3, 4)]
    actions += [lambda margin=margin: service.calibrate(KEY, margin=margin) for margin in (1.1, 1.2, 1.3)]
    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert errors == []
    for number, _ in numbers(service):
        found = service.versions.stored(KEY, number)
        states[number] = (found.model.calibration and found.model.calibration.threshold, found.bank.checksum)
    assert {(threshold, checksum) for _, threshold, checksum, *_ in wanted} <= {*states.values()}
    assert verify_folder(models) == []
    assert numbers(service)[0][1]


_ACTIVATES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.unit.artifacts.test_versions import KEY, opened
service = opened(Path(sys.argv[1]), keep_versions=50)
for number in (1, 2, 3, 4) * 3:
    service.versions.activate(KEY, number)
service.close()
"""


def test_two_processes_activate_and_fit_on_one_folder(models: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    service = opened(models, keep_versions=50)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", _ACTIVATES, str(models), str(root)], env=environment) as other:
        seed = 30
        while other.poll() is None:
            service.calibrate(KEY, margin=1 + (seed % 7) / 10)
            answer(service)
            service.versions.listed(KEY)
            seed += 1
            time.sleep(0.01)
    assert other.returncode == 0
    assert verify_folder(models) == []
    found = [each for each in numbers(service) if each[1]]
    assert found == numbers(service)[:1]
    assert len({number for number, _ in numbers(service)}) == len(numbers(service))


# --- copies, archives -------------------------------------------------------------------------------------------------


def test_a_copied_recipe_begins_without_earlier_versions(models: Path) -> None:
    service = opened(models)
    Recipes(service.store).copy("default", "summer")
    copied = ModelKey(role_id="Inspection", roi_id="inspection-1", recipe_id="summer")
    assert not (models / "recipes" / "summer" / ROI / "versions").exists()
    assert numbers(service, copied) == [(1, True)]
    assert answer(service, copied) == answer(service)
    fit(service, 8, key=copied)
    assert numbers(service, copied) == [(2, True), (1, False)]
    assert len(numbers(service)) == 5


def test_a_first_fit_that_was_cut_off_leaves_nothing_that_keeps_a_recipe(tmp_path: Path) -> None:
    models = tmp_path / "models"
    service = opened(models)
    key = ModelKey(role_id="r", roi_id="i", recipe_id="summer")
    fit(service, 0, 1, 2, key=key)
    roi = models / "recipes" / "summer" / "r" / "i"
    (record,) = (roi / "versions").glob("1-*.json")
    record.rename(record.with_name(f"next-{record.name[2:]}"))
    for name in ("memory.npz", "index.faiss"):
        (roi / name).unlink()
    shutil.rmtree(roi / "images")
    assert service.versions.listed(key) == []
    Recipes(service.store).delete("summer")
    assert not roi.exists()


def test_a_backup_holds_the_versions_or_leaves_them_out(models: Path, tmp_path: Path) -> None:
    service = opened(models)
    before = answer(service)
    back_up(models, tmp_path / "whole.zip")
    back_up(models, tmp_path / "small.zip", with_versions=False)
    assert (tmp_path / "small.zip").stat().st_size < (tmp_path / "whole.zip").stat().st_size
    for name, wanted in (("whole", [5, 4, 3, 2, 1]), ("small", [1])):
        restore(tmp_path / f"{name}.zip", tmp_path / name)
        other = opened(tmp_path / name)
        assert [number for number, _ in numbers(other)] == wanted
        assert answer(other) == before
        assert verify_folder(tmp_path / name) == []
    whole = bytes_of(models, without=("heatmaps",))
    assert bytes_of(tmp_path / "whole", without=("heatmaps",)) == whole


def test_restoring_puts_the_archive_s_versions_in_the_place_of_those_that_were_there(
    models: Path, tmp_path: Path
) -> None:
    service = opened(models)
    back_up(models, tmp_path / "whole.zip")
    before = answer(service)
    for seed in (8, 9):
        fit(service, seed)
    restore(tmp_path / "whole.zip", models, replace=True)
    assert answer(service) == before
    assert [number for number, _ in numbers(service)] == [5, 4, 3, 2, 1]
    assert verify_folder(models) == []


@pytest.mark.parametrize(
    "name",
    [
        "r/i/versions/1-0123456789abcdef.json",
        "r/i/versions/next-0123456789abcdef.json",
        "r/i/versions/999999999-0123456789abcdef.json",
        "r/i/keys/j/versions/0123456789abcdef.npz",
        "recipes/line2/r/i/versions/0123456789abcdef.npz",
    ],
)
def test_files_of_versions_are_known(name: str) -> None:
    artifact = classify_path(name)
    assert artifact.kind == ("version" if name.endswith(".json") else "kept_memory")
    assert artifact.key is not None


@pytest.mark.parametrize(
    "name",
    [
        *("r/i/versions/0-0123456789abcdef.json", "r/i/versions/01-0123456789abcdef.json"),
        *("r/i/versions/1-0123456789ABCDEF.json", "r/i/versions/x.npz", "r/i/versions/1/memory.npz"),
        *("r/i/versions/1000000000-0123456789abcdef.json", "r/i/versions/1-0123456789abcde.json"),
    ],
)
def test_other_files_among_versions_are_unknown(name: str) -> None:
    assert classify_path(name).kind == "unknown"


def test_a_version_holds_its_record_as_written(models: Path) -> None:
    (path,) = (models / ROI / "versions").glob("2-*.json")
    version = version_from_bytes(path.read_bytes())
    assert isinstance(version, Version)
    assert (version.number, version.kind, version.activates) == (2, "calibration", None)
