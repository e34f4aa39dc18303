from __future__ import annotations

import itertools
import shutil
import threading
from collections import Counter

import cv2
import numpy as np
import pytest

from backend.artifacts import formats, roi_files
from backend.artifacts.files import write_atomic
from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import StoredImage
from backend.errors import (
    ArtefactOutdated,
    AspectRatioMismatch,
    BadImage,
    Conflict,
    ExtractorMismatch,
    InvalidInput,
    MmPerPxMismatch,
    ShapeOutsideImage,
    StorageFull,
    WeightsUnavailable,
)
from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import pixel_digest
from backend.roi_mask import Circle, Rect
from backend.services import renewal, training_images
from backend.services.datasets import Datasets, DatasetUpload
from backend.services.fit_request import Upload
from backend.settings import Settings
from backend.storage import ArtefactStore
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image

N = 6


def digest(seed: int) -> str:
    return pixel_digest(good_image(seed))


def uploads(*seeds: int, **options) -> list[Upload]:
    return [Upload(name=f"{seed}.png", data=encoded(good_image(seed)), **options) for seed in seeds]


def fit(service, key, images, **options):
    return service.fit_ok(key, images, **{"mm_per_px": 0.2, "coreset_rate": 0.1, **options})


def memory_bytes(tmp_path, models="models") -> bytes:
    return (tmp_path / models / "Inspection" / "inspection-1" / "memory.npz").read_bytes()


# -- the same images give the same memory -------------------------------------------------------------------------


@pytest.mark.parametrize("whitens", [False, True], ids=["unit rows", "whitened"])
@pytest.mark.parametrize(
    "calls",
    [
        [[5, 4, 3, 2, 1, 0]],
        [[0], [1], [2], [3], [4], [5]],
        [[3, 1], [5, 0, 2], [4]],
        [[0, 1, 2], [2, 3], [4, 4, 5], [0]],
    ],
    ids=["backwards", "one by one", "in three calls", "with repeats"],
)
def test_the_same_images_give_the_same_file_in_any_order_and_split(services, key, tmp_path, calls, whitens):
    fit(services("once", FakeExtractor(whitens=whitens)), key, uploads(*range(N)))
    service = services("split", FakeExtractor(whitens=whitens))
    for seeds in calls:
        fit(service, key, uploads(*seeds))
    assert memory_bytes(tmp_path, "split") == memory_bytes(tmp_path, "once")
    index = [tmp_path / name / "Inspection" / "inspection-1" / "index.faiss" for name in ("once", "split")]
    assert index[0].read_bytes() == index[1].read_bytes()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_the_batch_size_does_not_change_the_memory(services, key, tmp_path, batch_size):
    images = uploads(*range(5))
    fit(services("one", FakeExtractor()), key, images)
    fit(services("batch", FakeExtractor(batch_size=batch_size)), key, images)
    assert memory_bytes(tmp_path, "batch") == memory_bytes(tmp_path, "one")


def test_two_fits_at_once_both_count(services, key, tmp_path):
    fit(services("once"), key, uploads(*range(N)))
    shared = [services("shared"), services("shared")]
    threads = [
        threading.Thread(target=fit, args=(service, key, uploads(*seeds)))
        for service, seeds in zip(shared, ([0, 2, 4], [1, 3, 5]), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory_bytes(tmp_path, "shared") == memory_bytes(tmp_path, "once")


GREY = good_image(0)[:, :, 0]
SAME_PICTURE = {
    "png, grey": encoded(GREY),
    "png, colour": encoded(good_image(0)),
    "png, by opencv": cv2.imencode(".png", good_image(0))[1].tobytes(),
    "png, 16 bit": cv2.imencode(".png", GREY.astype(np.uint16) * 257)[1].tobytes(),
    "bmp": encoded(good_image(0), "BMP"),
    "bmp, grey": encoded(GREY, "BMP"),
    "tiff": encoded(good_image(0), "TIFF"),
    "webp": encoded(good_image(0), "WEBP", lossless=True),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise([*SAME_PICTURE, "png, grey"])))
def test_a_picture_that_was_stored_in_another_lossless_file_is_the_same_picture(
    service, extractor, key, tmp_path, first, second
):
    others = uploads(1, 2)
    fit(service, key, [Upload(name="a", data=SAME_PICTURE[first]), *others])
    before = memory_bytes(tmp_path)
    report = fit(service, key, [Upload(name="b", data=SAME_PICTURE[second])])
    assert (report.n_new, report.n_duplicates) == (0, 1)
    assert memory_bytes(tmp_path) == before
    assert len(extractor.calls) == 3
    images = service.store.images(key)
    assert all(images.read(image) for image in images.labelled("ok"))


# -- adding, replacing, restarting --------------------------------------------------------------------------------


def test_adding_extracts_only_the_new_images(service, extractor, key):
    report = fit(service, key, uploads(0, 1, 2))
    assert (report.n_new, report.n_duplicates, len(report.bank.image_digests)) == (3, 0, 3)
    assert sorted(extractor.calls) == sorted(digest(seed) for seed in (0, 1, 2))
    extractor.calls.clear()
    report = fit(service, key, uploads(2, 3, 3))
    assert (report.n_new, report.n_duplicates, len(report.bank.image_digests)) == (1, 2, 4)
    assert extractor.calls == [digest(3)]
    assert report.bank.image_digests == tuple(sorted(digest(seed) for seed in range(4)))
    assert report.bank.n_embeddings == 4 * 64
    assert len(report.bank.vectors) == 26  # 10 % of 256, rounded up


def test_after_a_restart_adding_still_extracts_only_the_new_images(services, key, tmp_path):
    fit(services(), key, uploads(0, 1, 2))
    extractor = FakeExtractor()
    fit(services(extractor=extractor), key, uploads(3))
    assert extractor.calls == [digest(3)]
    fit(services("once"), key, uploads(0, 1, 2, 3))
    assert memory_bytes(tmp_path) == memory_bytes(tmp_path, "once")


def test_mode_replace_starts_again_and_forgets_the_rest(service, key, tmp_path, services):
    fit(service, key, uploads(0, 1, 2), shape=Rect(x=0, y=0, w=32, h=64))
    report = fit(service, key, uploads(2, 3), mode="replace", mm_per_px=0.4)
    assert report.bank.image_digests == tuple(sorted(digest(seed) for seed in (2, 3)))
    assert (report.bank.shape, report.bank.mm_per_px) == (None, 0.4)
    images = service.store.images(key)
    assert {image.digest for image in images.labelled("ok")} == {digest(2), digest(3)}
    fit(services("fresh"), key, uploads(2, 3), mm_per_px=0.4)
    assert memory_bytes(tmp_path) == memory_bytes(tmp_path, "fresh")


def test_mode_replace_leaves_what_another_model_of_the_roi_has_learned(service, key):
    other = ModelKey(role_id=key.role_id, roi_id=key.roi_id, model_key="other")
    fit(service, other, uploads(0, 1))
    fit(service, key, uploads(1, 2))
    fit(service, key, uploads(3), mode="replace")
    images = service.store.images(key)
    assert {image.digest for image in images.labelled("ok")} == {digest(0), digest(1), digest(3)}


def test_an_image_that_was_deleted_is_not_in_the_next_fit_and_the_report_says_so(service, key):
    fit(service, key, uploads(0, 1, 2))
    service.store.images(key).delete([digest(1)], "ok")
    report = fit(service, key, uploads(3))
    assert report.bank.image_digests == tuple(sorted(digest(seed) for seed in (0, 2, 3)))
    assert any("1 learned images were deleted" in warning for warning in report.warnings)


@pytest.mark.parametrize("damage", ["deleted", "cut off"])
def test_embeddings_that_are_missing_or_damaged_are_extracted_again_once(service, extractor, key, tmp_path, damage):
    fit(service, key, uploads(0, 1))
    before = memory_bytes(tmp_path)
    (rows,) = (tmp_path / "models").rglob(f"{digest(0)}.npy")
    if damage == "deleted":
        rows.unlink()
    else:
        rows.write_bytes(rows.read_bytes()[:-50])
    extractor.calls.clear()
    fit(service, key, uploads(1))
    assert extractor.calls == [digest(0)]
    assert memory_bytes(tmp_path) == before
    fit(service, key, uploads(1))
    assert extractor.calls == [digest(0)]


# -- parts --------------------------------------------------------------------------------------------------------


def test_images_of_one_part_are_left_out_together(service, key):
    report = fit(service, key, [*uploads(0, 1, part_id="P1"), *uploads(2), *uploads(3, part_id="P2")])
    parts = dict(zip(report.bank.image_digests, report.bank.part_ids, strict=True))
    assert parts == {digest(0): "P1", digest(1): "P1", digest(2): digest(2), digest(3): "P2"}
    assert (report.bank.n_parts, len(report.scores.by_image), len(report.scores.by_part)) == (3, 4, 3)


def test_a_part_that_was_named_once_stays_named(service, key, services, tmp_path):
    fit(services("once"), key, [*uploads(0, 1, part_id="P1"), *uploads(2)])
    fit(service, key, [*uploads(0, 1, part_id="P1"), *uploads(2)])
    report = fit(service, key, uploads(0))  # sent again by somebody who does not say which part it shows
    assert report.bank.part_of(digest(0)) == "P1"
    assert memory_bytes(tmp_path) == memory_bytes(tmp_path, "once")
    report = fit(service, key, uploads(0, part_id="P9"))
    assert report.bank.part_of(digest(0)) == "P9"


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_uploads_of_one_image_the_one_that_names_its_part_counts(service, key, order):
    report = fit(service, key, [*uploads(0, part_id="P1"), *uploads(0)][::order] + uploads(1))
    assert report.bank.part_of(digest(0)) == "P1"


# -- shapes and sizes ---------------------------------------------------------------------------------------------


def test_a_shape_is_learned_once_and_kept_by_later_fits(service, key):
    shape = Rect(x=0, y=0, w=32, h=64)
    report = fit(service, key, uploads(0, 1), shape=shape)
    assert report.bank.mask_cells.reshape(8, 8).tolist() == [[True] * 4 + [False] * 4] * 8
    assert report.bank.n_embeddings == 2 * 32
    assert fit(service, key, uploads(2)).bank.shape == report.bank.shape
    changed = fit(service, key, uploads(2), shape=Circle(cx=32, cy=32, r=5)).bank
    assert changed.mask_cells.sum() == 4
    assert changed.n_embeddings == 3 * 4


def test_images_of_one_aspect_ratio_and_other_sizes_share_a_grid(service, key):
    large = [Upload(name="large", data=encoded(good_image(9, image_hw=(128, 128))))]
    fit(service, key, uploads(0))
    report = fit(service, key, large, shape=Rect(x=0, y=0, w=64, h=128))  # in pixels of the large image
    assert report.bank.mask_cells.reshape(8, 8)[:, :4].all()
    assert report.bank.mask_cells.sum() == 32


# -- what is refused, and that nothing is stored then -------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "options", "error"),
    [
        ([], {}, InvalidInput),
        ([Upload(name="broken.png", data=encoded(good_image(7))[:-40])], {}, BadImage),
        ([*uploads(7), Upload(name="x", data=b"no image")], {}, BadImage),
        (uploads(7), {"mm_per_px": 0.21}, MmPerPxMismatch),
        (uploads(7), {"shape": Rect(x=100, y=0, w=5, h=5)}, ShapeOutsideImage),
        ([Upload(name="wide", data=encoded(good_image(7, image_hw=(64, 96))))], {}, AspectRatioMismatch),
        ([*uploads(7), Upload(name="wide", data=encoded(good_image(8, image_hw=(64, 67))))], {}, AspectRatioMismatch),
        ([], {"use_dataset": True, "mm_per_px": 0.3}, MmPerPxMismatch),
    ],
    ids=["nothing", "truncated", "one of two is none", "scale", "shape", "aspect", "aspect of the second", "data set"],
)
def test_a_fit_that_is_refused_leaves_everything_as_it_was(service, extractor, key, tmp_path, images, options, error):
    fit(service, key, uploads(0, 1))
    before = {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()}
    with pytest.raises(error):
        fit(service, key, images, **options)
    assert {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()} == before
    assert len(extractor.calls) == 2


@pytest.mark.parametrize(("mm_per_px", "accepted"), [(0.204, True), (0.196, True), (0.2041, False), (0.1959, False)])
def test_a_scale_may_differ_by_two_per_cent_and_the_first_one_stays(service, key, mm_per_px, accepted):
    fit(service, key, uploads(0))
    if accepted:
        assert fit(service, key, uploads(1), mm_per_px=mm_per_px).bank.mm_per_px == 0.2
    else:
        with pytest.raises(MmPerPxMismatch) as refused:
            fit(service, key, uploads(1), mm_per_px=mm_per_px)
        assert f"{mm_per_px:g}" in refused.value.sentence
        assert "0.2." in refused.value.sentence


def test_a_memory_of_another_extractor_is_not_added_to(services, key):
    fit(services(extractor=FakeExtractor(variant="a")), key, uploads(0))
    other = services(extractor=FakeExtractor(variant="b"))
    with pytest.raises(ExtractorMismatch) as refused:
        fit(other, key, uploads(1))
    assert "fake-a" in refused.value.details["fitted_with"]
    assert fit(other, key, uploads(1), mode="replace").bank.extractor_id.startswith("fake-b")


def test_without_an_extractor_nothing_is_fitted(tmp_path, key):
    def fail():
        raise WeightsUnavailable("Set BDI_WEIGHTS.")

    service = build_service(Settings(models_dir=tmp_path / "models"), extractor=ExtractorLoader(fail))
    with pytest.raises(WeightsUnavailable):
        fit(service, key, uploads(0))
    service.close()
    assert not (tmp_path / "models").exists()


def test_a_bad_image_is_not_learned_as_a_good_one(service, key):
    image = defective_image(0)
    data = encoded(image)
    stored = StoredImage(
        digest=pixel_digest(image),
        label="ng",
        name="scratch",
        part_id="x",
        image_hw=(64, 64),
        mm_per_px=0.2,
        bytes_sha256="0",
        suffix=".png",
    )
    service.store.images(key).put(stored, data)
    with pytest.raises(Conflict):
        fit(service, key, [*uploads(0), Upload(name="scratch.png", data=data)])


# -- data sets ----------------------------------------------------------------------------------------------------


def test_use_dataset_learns_exactly_the_good_images_of_the_data_set(services, service, key, tmp_path):
    fit(service, key, uploads(0, 1, 2))
    images = service.store.images(key)
    images.delete([digest(0)], "ok")
    report = fit(service, key, [], use_dataset=True)
    assert report.bank.image_digests == tuple(sorted([digest(1), digest(2)]))
    report = fit(service, key, uploads(5), use_dataset=True)
    assert report.bank.image_digests == tuple(sorted([digest(1), digest(2), digest(5)]))
    fit(services("once"), key, uploads(1, 2, 5))
    assert memory_bytes(tmp_path) == memory_bytes(tmp_path, "once")


def test_an_empty_data_set_cannot_be_learned(service, key):
    with pytest.raises(InvalidInput, match="data set has no ok images"):
        fit(service, key, [], use_dataset=True)


# -- what becomes of a calibration --------------------------------------------------------------------------------


def test_a_calibration_is_renewed_with_the_memory_it_rests_on(service, key):
    assert fit(service, key, uploads(0, 1, 2)).calibration == "none"
    service.calibrate(key)
    report = fit(service, key, uploads(3, 4))
    assert report.calibration == "renewed"
    described = service.describe(key)
    assert described.calibration.threshold == report.threshold == max(report.scores.by_part)
    assert described.calibration.memory_checksum == report.bank.checksum
    assert (described.calibration.n_ok, described.stale) == (5, False)


def test_a_fit_that_changes_nothing_keeps_the_calibration(service, key):
    fit(service, key, uploads(0, 1, 2))
    service.calibrate(key, ng_scores=[1.5])
    report = fit(service, key, uploads(1))
    assert (report.calibration, report.n_new, report.n_duplicates) == ("kept", 0, 1)
    assert service.describe(key).calibration.threshold == report.threshold


def test_a_calibration_that_rests_on_ng_scores_is_set_aside_and_the_report_says_so(service, key):
    fit(service, key, uploads(0, 1, 2))
    service.calibrate(key, ng_scores=[1.5])
    report = fit(service, key, uploads(3))
    assert (report.calibration, report.threshold) == ("stale", None)
    assert any("set aside" in warning for warning in report.warnings)
    described = service.describe(key)
    assert (described.calibration, described.stale) == (None, True)


def test_going_back_to_an_earlier_memory_finds_its_calibration_again_and_the_report_agrees(service, key):
    fit(service, key, uploads(0, 1, 2))
    first = service.calibrate(key, ng_scores=[1.5])
    fit(service, key, uploads(3))
    service.calibrate(key, ng_scores=[1.7])
    report = fit(service, key, uploads(0, 1, 2), mode="replace")
    described = service.describe(key)
    assert described.calibration == first
    assert (report.calibration, report.threshold) == ("kept", first.threshold)
    assert not any("set aside" in warning for warning in report.warnings)


def test_a_fit_whose_memory_cannot_be_written_leaves_the_old_model_in_force(service, key, monkeypatch):
    fit(service, key, uploads(0, 1, 2))
    before = service.calibrate(key)
    bank = service.describe(key).bank

    def full_disk(path, data):
        if path.name == "memory.npz":
            raise StorageFull("full")
        write_atomic(path, data)

    monkeypatch.setattr("backend.artifacts.roi_files.write_atomic", full_disk)
    for seed in (3, 4, 5):
        with pytest.raises(StorageFull):
            fit(service, key, uploads(seed))
    monkeypatch.undo()
    described = service.describe(key)
    assert (described.bank.checksum, described.calibration, described.stale) == (bank.checksum, before, False)
    assert fit(service, key, uploads(3)).calibration == "renewed"


# -- reports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "words"), [(1, "not enough for a threshold"), (2, "2 good parts prove little")])
def test_too_few_parts_are_remarked_on(service, key, n, words):
    report = fit(service, key, uploads(*range(n)))
    assert any(words in warning for warning in report.warnings)
    assert (report.scores.suggested_threshold() is None) == (n == 1)


def test_a_region_smaller_than_a_quarter_of_a_cell_is_remarked_on_with_a_remedy(service, key):
    # 64 px in 8 cells at 0.2 mm/px: 1.6 mm cells, a quarter is 0.64 mm². At 0.5 mm/px: 4 mm, 4 mm².
    assert not any("one patch cell" in w for w in fit(service, key, uploads(0)).warnings)
    other = ModelKey(role_id="r", roi_id="coarse")
    (warning,) = [w for w in fit(service, other, uploads(0), mm_per_px=0.5).warnings if "one patch cell" in w]
    assert "4.00 mm wide" in warning
    assert "BDI_INPUT_SIZE=128" in warning  # cells of 2 mm: a quarter of one is the 1 mm² asked for


def test_progress_counts_the_images_and_the_picks(services, key):
    told = []
    service = services(extractor=FakeExtractor(batch_size=2))
    fit(service, key, uploads(0, 1, 2, 3, 4), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (7, 7)
    assert {(2, 7), (4, 7), (5, 7)} <= set(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_fit_lets_inspections_in_between_its_images(services, key):
    gate, entered = threading.Event(), threading.Event()

    class Slow(FakeExtractor):
        def extract(self, image_bgr):
            if threading.current_thread().name == "device" and len(self.calls) == 3:
                entered.set()
                assert gate.wait(10)
            return super().extract(image_bgr)

    slow = Slow()
    service = services(extractor=slow)
    fit(service, key, uploads(0, 1))
    fitting = threading.Thread(target=fit, args=(service, key, uploads(2, 3, 4, 5)))
    fitting.start()
    assert entered.wait(10)  # the second of four images is on the device
    inspecting = threading.Thread(target=service.infer, args=(key, good_image(50)), kwargs={"mm_per_px": 0.2})
    inspecting.start()
    while service._device.waiting == 0:
        pass
    gate.set()
    inspecting.join(10)
    fitting.join(10)
    assert slow.calls.index(digest(50)) == 4  # before the third and the fourth


def test_the_memory_of_a_roi_survives_its_folder_being_moved(services, key, tmp_path):
    fit(services("here"), key, uploads(0, 1, 2))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = ArtefactStore(tmp_path / "there").load(key).bank
    assert moved.checksum == ArtefactStore(tmp_path / "here").load(key).bank.checksum


def test_replacing_a_memory_deletes_what_it_had_learned_and_nothing_else_of_the_data_set(service, key, tmp_path):
    datasets = Datasets(ArtefactStore(tmp_path / "models"), max_pixels=10**6)
    fit(service, key, uploads(1))
    datasets.add(key, "ok", [DatasetUpload(name="kept.png", data=uploads(2)[0].data)])
    fit(service, key, uploads(3), mode="replace")
    assert {image.digest for image in datasets.list(key)["ok"]} == {digest(2), digest(3)}


def test_a_memory_of_an_older_format_is_refused_untouched_and_learned_again_by_any_fit(
    services, key, tmp_path, monkeypatch
):
    with monkeypatch.context() as older:
        older.setattr(formats, "FORMAT_VERSION", formats.FORMAT_VERSION - 1)
        service = services()
        fit(service, key, uploads(0, 1, 2))
        service.calibrate(key)
    service, before = services(), memory_bytes(tmp_path)
    with pytest.raises(ArtefactOutdated, match="learns the stored good images again"):
        service.infer(key, good_image(9), mm_per_px=0.2)
    assert memory_bytes(tmp_path) == before
    report = fit(service, key, uploads(3))
    assert len(report.bank.image_digests) == 4
    assert sum("of an older format" in warning for warning in report.warnings) == 2  # the memory, the calibration
    with pytest.raises(ArtefactOutdated, match="calibrate the ROI again"):
        service.infer(key, good_image(9), mm_per_px=0.2)
    service.calibrate(key)
    assert service.infer(key, good_image(9), mm_per_px=0.2).decision == "ok"


# -- nothing is done twice ----------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Counts what a fit does, by name."""
    counted = Counter()

    def count(owner, name, key=None):
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            counted[key(*args) if key else name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(training_images, "decode_image")
    count(renewal, "leave_one_out_scores")
    count(roi_files, "read_file", key=lambda path: path.name)
    return counted


def test_an_upload_is_decoded_once_and_a_learned_image_not_again(service, key, calls):
    fit(service, key, uploads(0, 1, 1, 2))
    assert calls["decode_image"] == 4
    fit(service, key, uploads(3))
    assert calls["decode_image"] == 5


def test_stored_images_are_decoded_once_for_embeddings_and_position_map_together(service, key, calls, tmp_path):
    datasets = Datasets(ArtefactStore(tmp_path / "models"), max_pixels=10**6)
    datasets.add(key, "ok", [DatasetUpload(name="x.png", data=upload.data) for upload in uploads(0, 1, 2)])
    calls.clear()
    fit(service, key, [], use_dataset=True)
    assert calls["decode_image"] == 3
    fit(service, key, uploads(3), use_dataset=True)
    fit(service, key, [], use_dataset=True, mode="replace")
    assert calls["decode_image"] == 4


def test_after_damage_stored_images_are_decoded_once_for_their_position_maps(service, extractor, key, calls, tmp_path):
    fit(service, key, uploads(0, 1, 2))
    path = tmp_path / "models" / "Inspection" / "inspection-1" / "memory.npz"
    before = path.read_bytes()
    path.write_bytes(before[:-100])
    calls.clear()
    extractor.calls.clear()
    fit(service, key, uploads(2))
    assert calls["decode_image"] == 3  # the upload, which is one of the three, and the two others
    assert extractor.calls == []
    assert path.read_bytes() == before


def test_a_refit_decodes_no_image_whose_embeddings_and_position_map_are_there(service, key, calls):
    fit(service, key, uploads(0, 1, 2))
    calls.clear()
    service.refitter.refit(key, force=True)
    assert calls["decode_image"] == 0


def test_a_fit_that_renews_the_calibration_scores_its_images_once_and_reads_its_files_once(service, key, calls):
    fit(service, key, uploads(*range(N)))
    service.calibrate(key)
    calls.clear()
    assert fit(service, key, uploads(N)).calibration == "renewed"
    assert calls["leave_one_out_scores"] == 1
    assert (calls["memory.npz"], calls["calib.json"]) == (1, 1)
