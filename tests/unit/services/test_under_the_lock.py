"""What is decided under a ROI's lock rests on what is read under it, whatever happens before the lock is taken."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from backend.artifacts.layout import CORRUPT_MARK, classify_path
from backend.artifacts.model_key import ModelKey
from backend.errors import Conflict, InvalidInput, MmPerPxMismatch
from backend.maintenance.verifying import verify_folder
from backend.services.dataset_runs import calibrate_from_dataset
from backend.services.datasets import Datasets, DatasetUpload
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from tests.testkit.fakes import defective_image, encoded, good_image


@pytest.fixture
def datasets(service: InspectionService) -> Datasets:
    return Datasets(service.store, max_pixels=10**6)


def upload(seed: int, *, mm_per_px: float | None = None, image: Any = None) -> DatasetUpload:
    meta = {} if mm_per_px is None else {"mm_per_px": mm_per_px}
    return DatasetUpload(name=f"{seed}.png", data=encoded(good_image(seed) if image is None else image), meta=meta)


def fit(service: InspectionService, key: ModelKey, *seeds: int, **options: Any) -> Any:
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in seeds]
    return service.fit_ok(key, uploads, **{"mm_per_px": 0.2, **options})


@contextmanager
def before_the_lock(service: InspectionService, change: Callable[[], object]) -> Iterator[None]:
    """Let something happen at the last moment before the ROI's lock is next taken."""
    real, store = service.store.lock, service.store

    def lock(*arguments: Any, **options: Any) -> Any:
        store.lock = real  # type: ignore[method-assign]
        change()
        return real(*arguments, **options)

    store.lock = lock  # type: ignore[method-assign]
    try:
        yield
        assert store.lock == real, "the lock was never taken"
    finally:
        store.lock = real  # type: ignore[method-assign]


def packed_otherwise(data: bytes, form: str = "PNG", **options: Any) -> bytes:
    """Return the same pixels as another file."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(buffer, form, **options)
    assert buffer.getvalue() != data
    return buffer.getvalue()


@pytest.mark.parametrize(("form", "options"), [("PNG", {"compress_level": 0}), ("BMP", {})])
@pytest.mark.parametrize("moment", ["before the file is read", "after it was read", "while the facts are away"])
def test_an_image_that_was_deleted_and_uploaded_again_as_another_file_is_not_damaged(
    service: InspectionService, datasets: Datasets, key: ModelKey, form: str, options: dict[str, int], moment: str
) -> None:
    (image,) = datasets.add(key, "ok", [upload(0)])
    again = DatasetUpload(name="0.png", data=packed_otherwise(upload(0).data, form, **options))

    def replace() -> None:
        assert datasets.delete(key, "ok", image.file_name)
        datasets.add(key, "ok", [again])

    images = service.store.images(key)
    if moment == "before the file is read":
        replace()
        assert images.read(image) == again.data
    else:
        # The second look, under the lock, sees what the first one did not.
        path = service.store.roi_folder(key) / "images" / "ok" / f"{image.digest}.png"
        path.write_bytes(b"for a moment")
        found_damaged = images._found_damaged

        def later(*arguments: Any) -> None:
            replace()
            if moment == "while the facts are away":
                facts = path.with_suffix(".json")
                kept = facts.read_bytes()
                facts.unlink()
                found_damaged(*arguments)
                facts.write_bytes(kept)
            else:
                found_damaged(*arguments)

        images._found_damaged = later
        with pytest.raises(Exception, match="damaged"):
            images.read(image)
    folder = service.store.roi_folder(key) / "images" / "ok"
    assert not [entry.name for entry in folder.iterdir() if CORRUPT_MARK in entry.name]
    (now,) = datasets.list(key)["ok"]
    assert datasets.read(key, now) == again.data
    assert verify_folder(service.store.models_dir) == []


def test_an_upload_is_compared_with_the_fit_that_came_first(
    service: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    with before_the_lock(service, lambda: fit(service, key, 0, 1)), pytest.raises(MmPerPxMismatch):
        datasets.add(key, "ok", [upload(2, mm_per_px=0.5)])
    assert len(datasets.list(key)["ok"]) == 2
    with before_the_lock(service, lambda: fit(service, key, 3)):
        datasets.add(key, "ok", [upload(4, mm_per_px=0.2)])


def test_a_fit_with_the_data_set_takes_its_size_from_the_data_set_of_its_lock(
    service: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    datasets.add(key, "ok", [upload(0)])
    half = [cv2.resize(good_image(seed), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for seed in (1, 2)]

    def exchange() -> None:
        datasets.clear(key, "ok")
        datasets.add(key, "ok", [upload(seed, image=image) for seed, image in enumerate(half, 1)])

    with before_the_lock(service, exchange):
        report = fit(service, key, use_dataset=True)
    assert report.bank.placement.image_hw == half[0].shape[:2]
    assert len(report.bank.image_digests) == 2


def test_a_fit_whose_data_set_was_cleared_meanwhile_is_refused_in_words(
    service: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    datasets.add(key, "ok", [upload(0)])
    with (
        before_the_lock(service, lambda: datasets.clear(key, "ok")),
        pytest.raises(InvalidInput, match="The data set has no ok images"),
    ):
        fit(service, key, use_dataset=True)


def test_a_calibration_counts_bad_images_that_came_before_its_lock(
    service: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    fit(service, key, 0, 1, 2)
    bad = upload(9, image=defective_image(9))
    with before_the_lock(service, lambda: datasets.add(key, "ng", [bad])):
        calibration = service.calibrate(key)
    assert calibration.n_ng == len(calibration.ng_images) == 1


def test_scores_that_were_measured_under_another_rule_than_the_one_in_force_are_a_conflict(
    service: InspectionService, datasets: Datasets, key: ModelKey
) -> None:
    datasets.add(key, "ok", [upload(seed) for seed in range(4)])
    fit(service, key, use_dataset=True)
    service.calibrate(key, score_mode="percentile")
    with (
        before_the_lock(service, lambda: service.calibrate(key, score_mode="max")),
        pytest.raises(Conflict, match="calibrated while its images were inspected"),
    ):
        calibrate_from_dataset(service, datasets, key)
    found = service.describe(key).last_calibration
    assert found is not None
    assert found.score_mode == "max", "what was answered stays"
    with before_the_lock(service, lambda: service.calibrate(key, margin=2.0)):
        calibrate_from_dataset(service, datasets, key)
    with before_the_lock(service, lambda: service.calibrate(key, score_mode="percentile")):
        calibrate_from_dataset(service, datasets, key, score_mode="max", area_mm2_thr=1.0)


def test_what_is_mended_or_found_during_a_walk_goes_before_what_the_walk_has_seen(
    service: InspectionService, key: ModelKey
) -> None:
    quarantine, folder = service.store.quarantine, service.store.roi_folder(key)
    mended, found = folder / "memory.npz", folder / "images" / "ok" / f"{'a' * 64}.png"
    quarantine.remember(mended)
    quarantine.begin_walk()
    seen = classify_path("Inspection/inspection-1/memory.npz.corrupt-20261122T185500Z")
    quarantine.forget(mended)
    quarantine.remember(found)
    quarantine.update([seen])
    assert quarantine.reason is not None
    assert "memory" not in quarantine.reason
    assert "ok image" in quarantine.reason
    quarantine.forget(found.with_suffix(".json"))
    assert quarantine.reason is None, "the upload that mends an image writes its facts last"


def test_the_pixels_of_the_test_are_what_it_says() -> None:
    one, other = upload(0).data, packed_otherwise(upload(0).data, "BMP")
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in (one, other)]
    np.testing.assert_array_equal(*pixels)
