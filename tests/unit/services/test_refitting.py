"""Making memories anew: what stays as it was, what cannot, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts.model_key import ModelKey
from backend.calib import ScoreRule
from backend.errors import (
    ArtefactCorrupt,
    ArtefactOutdated,
    ExtractorMismatch,
    JobCancelled,
    MemoryNotFound,
    NotFound,
    RequestTimeout,
    WeightsUnavailable,
)
from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import pixel_digest
from backend.roi_mask import Rect
from backend.services.calibrating import MeasuredScores
from backend.services.datasets import Datasets, DatasetUpload
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.services.refit_runs import fitted_models, refit_models
from backend.services.rule_choice import RuleChoice
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image
from tests.testkit.older_files import older_calibration, older_memory

SHAPE = Rect(x=8, y=8, w=40, h=48)
SETTINGS: dict[str, Any] = {"score_mode": "top_mean", "score_percentile": 97.0, "area_mm2_thr": 0.5, "margin": 1.25}
RULE = ScoreRule(mode="top_mean", percentile=97.0, blur_sigma=1.0, area_mm2_thr=0.5)


def folder_of(service: InspectionService, key: ModelKey) -> Path:
    return service.store.model_folder(key)


def uploads(*seeds: int) -> list[Upload]:
    return [Upload(name=f"{seed}.png", data=encoded(good_image(seed)), part_id=f"part-{seed // 2}") for seed in seeds]


def fit(service: InspectionService, key: ModelKey, *seeds: int, **options: Any) -> Any:
    return service.fit_ok(key, uploads(*seeds), **{"mm_per_px": 0.2, "coreset_rate": 0.25, **options})


def make_older(service: InspectionService, key: ModelKey, version: int, *, calibration: Any = None, **of: Any) -> None:
    """Put files of an older format in the place of a ROI's own."""
    bank = service.describe(key).fitted_bank(key)
    folder = folder_of(service, key)
    (folder / "memory.npz").write_bytes(older_memory(bank, version, **of))
    if calibration is not None:
        (folder / "calib.json").write_bytes(older_calibration(version, **calibration))


# --- another extractor ------------------------------------------------------------------------------------------------


def test_a_memory_of_another_extractor_becomes_what_a_fit_with_the_new_one_would_give(services, key) -> None:
    before = fit(services(), key, *range(6), shape=SHAPE)
    service = services(extractor=FakeExtractor(variant="b"))
    with pytest.raises(ExtractorMismatch, match="POST /refit or `roi-inspector refit`"):
        service.infer(key, good_image(9), mm_per_px=0.2)
    report = service.refitter.refit(key)
    bank = report.bank
    assert bank.extractor_id == FakeExtractor(variant="b").extractor_id != before.bank.extractor_id
    assert (bank.image_digests, bank.part_ids) == (before.bank.image_digests, before.bank.part_ids)
    assert bank.n_parts == 3
    assert (bank.shape, bank.mm_per_px, bank.options) == (before.bank.shape, 0.2, before.bank.options)
    assert (report.calibration, report.threshold, report.set_aside) == ("none", None, None)
    fresh = services("fresh", FakeExtractor(variant="b"))
    fit(fresh, key, *range(6), shape=SHAPE)
    assert (folder_of(service, key) / "memory.npz").read_bytes() == (folder_of(fresh, key) / "memory.npz").read_bytes()
    assert service.infer(key, good_image(9), mm_per_px=0.2).score > 0


def test_shape_and_size_of_the_first_fit_stay_where_its_image_is_gone(services, key) -> None:
    large = sorted((pixel_digest(good_image(seed, image_hw=(128, 128))), seed) for seed in range(20))
    small = sorted((pixel_digest(good_image(seed)), seed) for seed in range(20))
    first, second = large[0][1], small[-1][1]  # the large image is the first by digest
    assert large[0][0] < small[-1][0]
    service = services()
    data = encoded(good_image(first, image_hw=(128, 128)))
    service.fit_ok(key, [Upload(name="large", data=data)], mm_per_px=0.2, shape=Rect(x=16, y=16, w=80, h=96))
    fit(service, key, second)
    images = service.store.images(key)
    images.delete([large[0][0]], "ok")
    report = services(extractor=FakeExtractor(variant="b")).refitter.refit(key)
    assert report.bank.image_digests == (small[-1][0],)
    assert report.bank.placement.image_hw == (128, 128)
    assert report.bank.shape == {"kind": "rect", "x": 16.0, "y": 16.0, "w": 80.0, "h": 96.0}


def test_the_grid_may_be_another(services, key) -> None:
    fit(services(), key, 0, 2, shape=SHAPE)
    report = services(extractor=FakeExtractor(cell_px=4)).refitter.refit(key)
    assert report.bank.placement.grid_hw == (16, 16)
    assert report.bank.shape == {"kind": "rect", "x": 8.0, "y": 8.0, "w": 40.0, "h": 48.0}
    assert int(report.bank.mask_cells.sum()) == 10 * 12


def test_the_new_embeddings_are_kept_and_those_of_the_other_extractor_deleted(services, key) -> None:
    fit(services(), key, 0, 1)
    extractor = FakeExtractor(variant="b")
    service = services(extractor=extractor)
    assert service.refitter.refit(key).bank is not None
    assert len(extractor.calls) == 2
    (rows,) = (folder_of(service, key) / "embeddings").iterdir()
    assert len(list(rows.iterdir())) == 2
    assert service.refitter.refit(key, force=True).calibration == "none"
    assert len(extractor.calls) == 2


def test_what_is_up_to_date_is_left_alone_unless_forced(service, key) -> None:
    fit(service, key, 0, 2)
    service.calibrate(key)
    stamps = service.store.stamps(key)
    assert service.refitter.refit(key).bank is None
    assert service.refitter.n_images_to_learn(key) == 0
    assert service.store.stamps(key) == stamps
    assert service.refitter.n_images_to_learn(key, force=True) == 2
    report = service.refitter.refit(key, force=True)
    assert report.bank.checksum == service.describe(key).bank.checksum
    assert (report.calibration, report.set_aside) == ("kept", None)


# --- the calibration --------------------------------------------------------------------------------------------------


def test_a_calibration_from_the_roi_s_own_scores_is_renewed_with_its_settings(services, key) -> None:
    old = services()
    fit(old, key, *range(6))
    before = old.calibrate(key, ok_percentile=90.0, **SETTINGS)
    service = services(extractor=FakeExtractor(variant="b"))
    report = service.refitter.refit(key)
    after = service.describe(key).calibration
    assert report.calibration == "renewed"
    assert after is not None
    assert report.threshold == after.threshold
    assert replace(after, memory_checksum=before.memory_checksum, warnings=before.warnings) == before
    assert service.infer(key, good_image(9), mm_per_px=0.2).decision is not None


@pytest.mark.parametrize(
    ("scores", "rests_on"),
    [
        ({"ok_scores": [0.3, 0.4], "ng_scores": None}, "2 OK scores that were sent"),
        ({"ng_scores": [5.0, 6.0]}, "the scores of 3 good parts and 2 NG scores"),
        (
            {"ok_scores": [0.3, 0.4], "ng_scores": [5.0], "measured": MeasuredScores(by=RuleChoice(rule=RULE))},
            "2 OK scores of the data set and 1 ",
        ),
    ],
    ids=["sent OK scores", "NG scores", "the data set"],
)
def test_a_threshold_that_rests_on_other_scores_is_set_aside_and_named(services, key, scores, rests_on) -> None:
    old = services()
    fit(old, key, *range(6))
    old.calibrate(key, **SETTINGS)
    before = old.calibrate(key, **scores)
    service = services(extractor=FakeExtractor(variant="b"))
    report = service.refitter.refit(key)
    assert (report.calibration, report.threshold, report.set_aside) == ("stale", None, before)
    (warning,) = [each for each in report.warnings if "set aside" in each]
    assert f"The threshold {before.threshold:.4g} rested on {rests_on}" in warning
    assert "/calibrate_dataset calibrates with the stored images (bad ones stored: 0)" in warning
    assert "/calibrate_ng" in warning
    model = service.describe(key)
    assert (model.calibration, model.stale) == (None, True)
    assert service.infer(key, good_image(9), mm_per_px=0.2).decision is None
    assert service.calibrate(key).score_mode == "top_mean"


def test_bad_images_that_are_stored_are_mentioned(services, key, store) -> None:
    old = services()
    fit(old, key, *range(6))
    old.calibrate(key, ng_scores=[5.0])
    bad = DatasetUpload(name="bad.png", data=encoded(defective_image(7)))
    Datasets(store, max_pixels=10**6).add(key, "ng", [bad])
    report = services(extractor=FakeExtractor(variant="b")).refitter.refit(key)
    assert any("(bad ones stored: 1)" in warning for warning in report.warnings)


# --- older formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("extractor_id", [None, "fake, the first version"])
def test_what_an_older_version_wrote_is_made_anew_with_its_options_and_calibration(
    service, key, version, extractor_id
) -> None:
    before = fit(service, key, *range(6), shape=SHAPE).bank
    make_older(service, key, version, calibration={}, extractor_id=extractor_id, k=2, seed=3, coreset_rate=0.5)
    with pytest.raises(ArtefactOutdated, match="POST /refit or `roi-inspector refit`"):
        service.infer(key, good_image(9), mm_per_px=0.2)
    report = service.refitter.refit(key)
    bank, calibration = report.bank, service.describe(key).calibration
    assert (bank.image_digests, bank.part_ids, bank.shape) == (before.image_digests, before.part_ids, before.shape)
    assert (bank.options.coreset_rate, bank.options.seed, bank.options.k) == (0.5, 3, 2)
    assert report.calibration == "renewed"
    assert calibration is not None
    assert (calibration.score_mode, calibration.score_percentile) == ("top_mean", 97.0)
    assert (calibration.area_mm2_thr, calibration.ok_percentile, calibration.margin) == (0.5, 90.0, 1.25)
    assert calibration.ok_scores_from == "stored"
    assert calibration.threshold == report.threshold
    assert service.infer(key, good_image(9), mm_per_px=0.2).decision is not None


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_calibration_that_rests_on_ng_scores_is_set_aside_and_its_settings_stay(service, key, version) -> None:
    fit(service, key, *range(6))
    make_older(service, key, version, calibration={"n_ng": 2, "ng_caught": 2, "threshold": 0.4321})
    report = service.refitter.refit(key)
    assert (report.calibration, report.set_aside.threshold, report.set_aside.n_ng) == ("stale", 0.4321, 2)
    assert any("The threshold 0.4321 rested on the scores of 5 good parts and 2 NG" in each for each in report.warnings)
    assert service.infer(key, good_image(9), mm_per_px=0.2).decision is None  # and is not refused
    assert service.describe(key).stale
    again = service.calibrate(key)
    assert (again.score_mode, again.score_percentile, again.area_mm2_thr) == ("top_mean", 97.0, 0.5)


@pytest.mark.parametrize(
    ("version", "fitted_with", "first"), [(1, "percentile", "area"), (2, "percentile", "area"), (2, "max", "max")]
)
def test_what_an_older_version_never_calibrated_gets_its_first_calibration_as_a_new_roi_does(
    service, key, version, fitted_with, first
) -> None:
    fit(service, key, *range(6))
    make_older(service, key, version, mode=fitted_with)
    assert service.refitter.refit(key).calibration == "none"
    assert service.infer(key, good_image(9), mm_per_px=0.2).params["score_mode"] == fitted_with
    assert service.calibrate(key).score_mode == first


def test_an_older_calibration_beside_a_memory_of_now_is_renewed_as_well(service, key) -> None:
    fit(service, key, *range(6))
    (folder_of(service, key) / "calib.json").write_bytes(older_calibration(2))
    with pytest.raises(ArtefactOutdated, match="/refit"):
        service.infer(key, good_image(9), mm_per_px=0.2)
    assert service.refitter.n_images_to_learn(key) == 6
    assert service.refitter.refit(key).calibration == "renewed"
    assert service.describe(key).calibration.margin == 1.25


def test_an_older_calibration_that_nobody_can_read_is_named(service, key) -> None:
    fit(service, key, *range(6))
    make_older(service, key, 2, calibration={"unknown": 1})
    report = service.refitter.refit(key)
    assert report.calibration == "none"
    assert any("of an older format and cannot be read" in warning for warning in report.warnings)


# --- damage and loss --------------------------------------------------------------------------------------------------


def test_a_damaged_memory_whose_facts_are_whole_is_made_anew(service, key) -> None:
    before = fit(service, key, *range(4), shape=SHAPE).bank
    path = folder_of(service, key) / "memory.npz"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactCorrupt):
        service.describe(key)
    assert not path.exists()  # it was set aside
    assert service.refitter.refit(key).bank == before
    assert service.describe(key).bank.checksum == before.checksum


def test_a_memory_whose_list_of_images_is_damaged_too_is_refused(service, key) -> None:
    fit(service, key, 0, 1)
    path = folder_of(service, key) / "memory.npz"
    path.write_bytes(path.read_bytes().replace(b'"seed":0', b'"seed":1'))
    for ask in (service.refitter.refit, service.refitter.n_images_to_learn):
        with pytest.raises(ArtefactCorrupt, match="use_dataset=true"):
            ask(key)


def test_a_roi_that_was_never_fitted_is_refused_and_gets_no_folder(service, key) -> None:
    with pytest.raises(MemoryNotFound):
        service.refitter.refit(key)
    assert not service.store.models_dir.exists()


def test_an_image_that_is_no_longer_stored_is_named(services, key) -> None:
    old = services()
    bank = fit(old, key, *range(6)).bank
    gone = bank.image_digests[2]
    old.store.images(key).delete([gone], "ok")
    report = services(extractor=FakeExtractor(variant="b")).refitter.refit(key)
    assert report.bank.image_digests == tuple(digest for digest in bank.image_digests if digest != gone)
    (warning,) = [each for each in report.warnings if "no longer stored" in each]
    assert warning.startswith("1 of the 6 images that this ROI had learned")
    assert gone[:12] in warning


def test_a_roi_without_any_of_its_images_keeps_its_memory(services, key) -> None:
    old = services()
    old.store.images(key).delete(fit(old, key, 0, 1).bank.image_digests, "ok")
    before = (folder_of(old, key) / "memory.npz").read_bytes()
    with pytest.raises(NotFound, match="None of the 2 images"):
        services(extractor=FakeExtractor(variant="b")).refitter.refit(key)
    assert (folder_of(old, key) / "memory.npz").read_bytes() == before


def test_images_that_were_never_learned_are_not_learned(services, key, store) -> None:
    fit(services(), key, 0, 1)
    other = DatasetUpload(name="other.png", data=encoded(good_image(5)))
    Datasets(store, max_pixels=10**6).add(key, "ok", [other])
    assert len(services(extractor=FakeExtractor(variant="b")).refitter.refit(key).bank.image_digests) == 2


def test_a_refit_that_is_cancelled_leaves_the_old_memory(services, key) -> None:
    old = services()
    fit(old, key, 0, 1, 2)
    before = (folder_of(old, key) / "memory.npz").read_bytes()

    def cancel(done: int, _total: int) -> None:
        if done == 2:
            raise JobCancelled("The job was cancelled.")

    service = services(extractor=FakeExtractor(variant="b"))
    with pytest.raises(JobCancelled):
        service.refitter.refit(key, progress=cancel)
    assert (folder_of(old, key) / "memory.npz").read_bytes() == before
    assert service.refitter.refit(key).bank is not None


# --- many of them -----------------------------------------------------------------------------------------------------

KEYS = [
    ModelKey(role_id="Inspection", roi_id="a"),
    ModelKey(role_id="Inspection", roi_id="a", model_key="other"),
    ModelKey(role_id="Inspection", roi_id="b"),
    ModelKey(role_id="Inspection", roi_id="b", recipe_id="summer"),
]


@pytest.fixture
def many(services) -> InspectionService:
    """A service of another extractor than that of the four models in its folder; one of them has lost its images."""
    old = services()
    for key in KEYS:
        fit(old, key, 0, 2)
    old.store.images(KEYS[2]).delete(old.describe(KEYS[2]).bank.image_digests, "ok")
    return services(extractor=FakeExtractor(variant="b"))


def test_all_models_are_found_also_damaged_ones_and_those_of_recipes(many) -> None:
    path = folder_of(many, KEYS[1]) / "memory.npz"
    path.rename(path.with_name("memory.npz.corrupt-20261122T185500Z"))
    assert fitted_models(many.store) == KEYS
    assert fitted_models(many.store, "summer") == KEYS[3:]
    assert fitted_models(many.store, "winter") == []


def test_one_that_fails_does_not_keep_the_others_from_their_turn(many) -> None:
    steps: list[tuple[int, int]] = []
    items = [*refit_models(many.refitter, KEYS, progress=lambda *step: steps.append(step))]
    assert [item.key for item in items] == KEYS
    assert [item.status for item in items] == ["done", "done", "failed", "done"]
    assert isinstance(items[2].error, NotFound)
    assert steps == sorted(steps, key=lambda step: (step[1] > 0, step[0]))
    assert steps[-1] == (6, 6)  # two images of each of three models
    again = [*refit_models(many.refitter, KEYS)]
    assert [item.status for item in again] == ["skipped", "skipped", "failed", "skipped"]
    forced = [*refit_models(many.refitter, KEYS, force=True)]
    assert [item.status for item in forced] == ["done", "done", "failed", "done"]


def test_a_fault_of_the_program_fails_one_model_alone(many, monkeypatch, caplog) -> None:
    save = many.store.save_bank

    def save_bank(key, *arguments, **others):
        if key == KEYS[0]:
            raise RuntimeError("a fault")
        return save(key, *arguments, **others)

    monkeypatch.setattr(many.store, "save_bank", save_bank)
    items = [*refit_models(many.refitter, KEYS)]
    assert [item.status for item in items] == ["failed", "done", "failed", "done"]
    assert "a fault" not in items[0].error.sentence
    assert "a fault" in caplog.text


@pytest.mark.parametrize(("at", "sentence"), [(1, "late"), (3, "after 1 ROIs were made anew")])
def test_what_is_done_when_the_time_is_up_stays_and_the_sentence_says_so(many, at, sentence) -> None:
    def late(done: int, _total: int) -> None:
        if done == at:
            raise RequestTimeout("late")

    with pytest.raises(RequestTimeout, match=sentence):
        [*refit_models(many.refitter, KEYS, progress=late)]
    assert (many.refitter.n_images_to_learn(KEYS[0]) == 0) == (at == 3)
    assert many.refitter.n_images_to_learn(KEYS[3]) == 2


def test_without_an_extractor_nothing_begins(tmp_path, many) -> None:
    def no_weights() -> Any:
        raise WeightsUnavailable("There are no weights.")

    service = build_service(Settings(models_dir=tmp_path / "models"), extractor=ExtractorLoader(no_weights))
    with pytest.raises(WeightsUnavailable):
        [*refit_models(service.refitter, KEYS)]
    service.close()
