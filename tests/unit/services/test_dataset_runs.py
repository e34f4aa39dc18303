"""Inspecting and calibrating with whole data sets, without HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts.model_key import ModelKey
from backend.calib import set_threshold
from backend.errors import Conflict, InvalidInput, MemoryNotFound, QueueFull, ShuttingDown, WeightsUnavailable
from backend.extractors.device_queue import DeviceQueue
from backend.extractors.loader import ExtractorLoader
from backend.services import dataset_runs
from backend.services.dataset_runs import calibrate_from_dataset, inspect_dataset
from backend.services.datasets import Datasets, DatasetUpload
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.storage import ArtefactStore
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image

_BOTH = ("ok", "ng")


@pytest.fixture
def datasets(store: ArtefactStore) -> Datasets:
    return Datasets(store, max_pixels=1_000_000)


@pytest.fixture
def filled(service: InspectionService, datasets: Datasets, key: ModelKey) -> InspectionService:
    """A service that has learned four images, with a fifth good one and a bad one that it has not."""
    service.fit_ok(key, [Upload(name=f"{n}.png", data=encoded(good_image(n))) for n in range(4)], mm_per_px=0.2)
    datasets.add(key, "ok", [DatasetUpload(name="new.png", data=encoded(good_image(50)))])
    datasets.add(key, "ng", [DatasetUpload(name="bad.png", data=encoded(defective_image(60)))])
    return service


def _fail_with(monkeypatch: pytest.MonkeyPatch, service: InspectionService, error: Exception, times: int) -> None:
    """Let the service fail with an error so many times before it inspects as ever."""
    left, infer = iter(range(times)), service.infer

    def failing(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is not None:
            raise error
        return infer(*arguments, **named)

    monkeypatch.setattr(service, "infer", failing)


def test_every_image_has_its_item_ok_first_by_name(
    filled: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    items = list(inspect_dataset(filled, datasets, key, labels=_BOTH))
    stored = datasets.list(key)
    assert [item.image for item in items] == [*stored["ok"], *stored["ng"]]
    assert [item.image.label for item in items] == ["ok"] * 5 + ["ng"]
    assert all(item.error is None and item.inspection is not None for item in items)


def test_the_items_say_how_each_was_scored(filled: InspectionService, datasets: Datasets, key: ModelKey) -> None:
    scoring = {}
    for item in inspect_dataset(filled, datasets, key, labels=_BOTH):
        assert item.inspection is not None
        scoring[item.image.name] = item.inspection.params["scoring"]
    assert scoring == {**{str(n): "leave_one_out" for n in range(4)}, "new": "new", "bad": "new"}


def test_progress_counts_every_image_also_those_that_fail(
    filled: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    datasets.add(key, "ng", [DatasetUpload(name="wide.png", data=encoded(good_image(1, image_hw=(64, 128))))])
    told: list[tuple[int, int]] = []
    items = list(inspect_dataset(filled, datasets, key, labels=_BOTH, progress=lambda *step: told.append(step)))
    assert told == [(n, 7) for n in range(1, 8)]
    assert [item.image.name for item in items if item.error] == ["wide"]


def test_nothing_is_inspected_before_it_is_asked_for(
    filled: InspectionService, datasets: Datasets, key: ModelKey, extractor: FakeExtractor
) -> None:
    calls = len(extractor.calls)
    items = inspect_dataset(filled, datasets, key, labels=_BOTH)
    assert len(extractor.calls) == calls
    next(items)
    assert len(extractor.calls) == calls + 1


def test_a_roi_without_a_memory_is_told_so(service: InspectionService, datasets: Datasets, key: ModelKey) -> None:
    with pytest.raises(MemoryNotFound):
        list(inspect_dataset(service, datasets, key, labels=_BOTH))
    with pytest.raises(MemoryNotFound):
        calibrate_from_dataset(service, datasets, key)


def test_an_image_s_own_scale_goes_before_the_default_and_that_before_the_roi_s(
    filled: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    datasets.add(key, "ng", [DatasetUpload(name="own.png", data=encoded(good_image(70)), meta={"mm_per_px": 0.2})])
    by_name = {item.image.name: item for item in inspect_dataset(filled, datasets, key, labels=["ng"])}
    assert {name: item.mm_per_px for name, item in by_name.items()} == {"bad": 0.2, "own": 0.2}
    by_name = {
        item.image.name: item for item in inspect_dataset(filled, datasets, key, labels=["ng"], default_mm_per_px=0.4)
    }
    assert by_name["own"].error is None
    assert (by_name["bad"].mm_per_px, by_name["bad"].inspection) == (0.4, None)
    assert "0.4" in str(by_name["bad"].error)


def test_a_full_queue_is_waited_for_and_no_fault_of_an_image(
    filled: InspectionService, datasets: Datasets, key: ModelKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_runs, "_QUEUE_POLL_S", 0.001)
    _fail_with(monkeypatch, filled, QueueFull("Full."), times=5)
    items = list(inspect_dataset(filled, datasets, key, labels=_BOTH))
    assert [item.error for item in items] == [None] * 6


def test_a_queue_that_stays_full_ends_the_run(
    filled: InspectionService, datasets: Datasets, key: ModelKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_runs, "_QUEUE_POLL_S", 0.001)
    monkeypatch.setattr(dataset_runs, "_QUEUE_PATIENCE_S", 0.05)
    _fail_with(monkeypatch, filled, QueueFull("Full."), times=10**9)
    with pytest.raises(QueueFull):
        list(inspect_dataset(filled, datasets, key, labels=_BOTH))


@pytest.mark.parametrize("error", [WeightsUnavailable("No weights."), ShuttingDown("Stopping.")])
def test_a_service_that_cannot_inspect_says_so_once_and_not_for_every_image(
    filled: InspectionService, datasets: Datasets, key: ModelKey, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(monkeypatch, filled, error, times=10**9)
    with pytest.raises(type(error)):
        list(inspect_dataset(filled, datasets, key, labels=_BOTH))
    with pytest.raises(type(error)):
        calibrate_from_dataset(filled, datasets, key)


def test_a_bug_in_the_service_is_not_taken_for_a_bad_image(
    filled: InspectionService, datasets: Datasets, key: ModelKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(monkeypatch, filled, ZeroDivisionError(), times=1)
    with pytest.raises(ZeroDivisionError):
        list(inspect_dataset(filled, datasets, key, labels=_BOTH))


def test_a_calibration_uses_the_scores_that_inspections_give(
    filled: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    calibration, _ = calibrate_from_dataset(filled, datasets, key)
    scores: dict[str, list[float]] = {"ok": [], "ng": []}
    for item in inspect_dataset(filled, datasets, key, labels=_BOTH):
        assert item.inspection is not None
        scores[item.image.label].append(item.inspection.score)
    assert calibration.threshold == pytest.approx(set_threshold(scores["ok"], scores["ng"]).threshold)
    assert (calibration.n_ok, calibration.n_ng) == (5, 1)
    assert calibration.ok_scores_from == "dataset"
    assert filled.describe(key).calibration == calibration


@pytest.mark.parametrize("after", [1, 6], ids=["in the middle", "after the last image"])
def test_a_fit_that_lands_meanwhile_is_noticed_and_nothing_is_calibrated(
    filled: InspectionService, datasets: Datasets, key: ModelKey, after: int
) -> None:
    before = filled.calibrate(key, margin=1.5, ng_scores=[1.9])

    def fit_meanwhile(done: int, _total: int) -> None:
        if done == after:
            filled.fit_ok(key, [Upload(name="9.png", data=encoded(good_image(9)))], mm_per_px=0.2)

    with pytest.raises(Conflict, match="fitted while its images were inspected"):
        calibrate_from_dataset(filled, datasets, key, progress=fit_meanwhile)
    assert filled.describe(key).calibrations == (before,)
    assert calibrate_from_dataset(filled, datasets, key)[0].n_ok == 6


def test_scores_of_two_memories_are_not_mixed_although_the_first_is_in_force_again(
    filled: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    first = filled.describe(key).fitted_bank(key)
    second = replace(first, options=replace(first.options, k=2))

    def switch(done: int, total: int) -> None:
        for bank, at in ((second, 1), (first, total)):
            if done == at:
                with filled.store.lock(key):
                    filled.store.save_bank(key, bank)

    with pytest.raises(Conflict):
        calibrate_from_dataset(filled, datasets, key, progress=switch)


def test_the_scores_are_measured_with_the_percentile_that_is_asked_for(
    filled: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    found, _ = calibrate_from_dataset(filled, datasets, key, score_percentile=80)
    by_name = {item.image.name: item.inspection for item in inspect_dataset(filled, datasets, key, labels=["ok"])}
    scores = [inspection.score for inspection in by_name.values() if inspection is not None]
    assert found.score_percentile == 80
    assert max(scores) == pytest.approx(found.p99_ok)
    assert not [warning for warning in found.warnings if "measured" in warning]


def test_the_worst_image_of_a_part_is_the_part_s_score(
    service: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    images = {"a1": (1, "a"), "a2": (2, "a"), "b1": (3, "b"), "c1": (4, "c")}
    for name, (seed, part) in images.items():
        datasets.add(
            key, "ok", [DatasetUpload(name=f"{name}.png", data=encoded(good_image(seed)), meta={"part_id": part})]
        )
    service.fit_ok(key, [], mm_per_px=0.2, use_dataset=True)
    found, _ = calibrate_from_dataset(service, datasets, key)
    score = {}
    for item in inspect_dataset(service, datasets, key, labels=["ok"]):
        assert item.inspection is not None
        score[item.image.name] = item.inspection.score
    expected = [max(score["a1"], score["a2"]), score["b1"], score["c1"]]
    assert found.n_ok == 3
    assert found.ok_mean == pytest.approx(sum(expected) / 3)


def test_the_only_part_of_a_memory_proves_nothing(
    service: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    service.fit_ok(key, [Upload(name="1.png", data=encoded(good_image(1)))], mm_per_px=0.2)
    with pytest.raises(InvalidInput, match="0 good parts"):
        calibrate_from_dataset(service, datasets, key)
    datasets.add(key, "ok", [DatasetUpload(name=f"{n}.png", data=encoded(good_image(n))) for n in (2, 3)])
    assert calibrate_from_dataset(service, datasets, key)[0].n_ok == 2


@pytest.mark.parametrize("needed", [5, 6])
def test_fewer_parts_than_the_setting_asks_for_are_not_enough(
    tmp_path: Path, datasets: Datasets, key: ModelKey, needed: int, patient: InspectionService
) -> None:
    datasets.add(key, "ok", [DatasetUpload(name=f"{n}.png", data=encoded(good_image(n))) for n in range(needed - 1)])
    patient.fit_ok(key, [], mm_per_px=0.2, use_dataset=True)
    if needed == 5:
        with pytest.raises(InvalidInput, match="4 good parts that can be scored; 5 are needed"):
            calibrate_from_dataset(patient, datasets, key)
    else:
        assert calibrate_from_dataset(patient, datasets, key)[0].n_ok == 5


@pytest.fixture
def patient(tmp_path: Path, extractor: FakeExtractor) -> Iterator[InspectionService]:
    """A service that wants five good parts."""
    settings = Settings(models_dir=tmp_path / "models", min_ok_samples=5)
    made = build_service(settings, extractor=ExtractorLoader(lambda: (extractor, None)))
    yield made
    made.close()


def test_required_ng_images_are_required_before_anything_is_inspected(
    filled: InspectionService, datasets: Datasets, key: ModelKey, extractor: FakeExtractor
) -> None:
    datasets.clear(key, "ng")
    calls = len(extractor.calls)
    with pytest.raises(InvalidInput, match="ng"):
        calibrate_from_dataset(filled, datasets, key, require_ng=True)
    assert len(extractor.calls) == calls


def test_images_that_fail_take_no_part_and_are_named(
    filled: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    datasets.add(key, "ng", [DatasetUpload(name="wide.png", data=encoded(good_image(1, image_hw=(64, 128))))])
    calibration, failed = calibrate_from_dataset(filled, datasets, key)
    assert [item.image.name for item in failed] == ["wide"]
    assert calibration.n_ng == 1


def test_a_run_over_a_real_full_queue_drops_nothing(
    store: ArtefactStore, datasets: Datasets, key: ModelKey, extractor: FakeExtractor
) -> None:
    """The device takes one inspection at a time and lets none wait: every image is refused now and then."""
    import threading

    service = build_service(
        Settings(models_dir=store.roi_folder(key).parents[1], queue_length=1),
        extractor=ExtractorLoader(lambda: (extractor, None)),
    )
    device: DeviceQueue = service._device
    try:
        service.fit_ok(key, [Upload(name=f"{n}.png", data=encoded(good_image(n))) for n in range(3)], mm_per_px=0.2)
        hold = threading.Event()
        blockers = [threading.Thread(target=lambda: device.run(lambda: hold.wait(10))) for _ in range(2)]
        for blocker in blockers:
            blocker.start()
        while device.waiting < 2:
            pass
        threading.Timer(0.2, hold.set).start()
        items = list(inspect_dataset(service, datasets, key, labels=_BOTH))
        for blocker in blockers:
            blocker.join()
    finally:
        service.close()
    assert [item.error for item in items] == [None] * 3
