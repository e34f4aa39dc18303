"""Whether a ROI is taken for aligned: what decides it, how long that holds, and what is said of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import pixel_digest
from backend.imaging.position_map import PLACE_CHANNELS, position_map
from backend.memory_bank.alignment import ALIGNED_FROM, alignment
from backend.roi_mask import Rect
from backend.services.fit_request import FitReport, Upload
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor, encoded, good_image, unaligned_image
from tests.testkit.older_files import older_memory

EVERYWHERE = np.ones(27 * 27, bool)


def agreeing(*seeds: int) -> list[Upload]:
    return [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in seeds]


def differing(*seeds: int) -> list[Upload]:
    return [Upload(name=f"u{seed}.png", data=encoded(unaligned_image(seed))) for seed in seeds]


def fit(service: Any, key: Any, uploads: list[Upload], **options: Any) -> FitReport:
    return service.fit_ok(key, uploads, **{"mm_per_px": 0.2, "coreset_rate": 0.1, **options})


def warnings_of(report: FitReport) -> list[str]:
    return [text for text in report.warnings if "aligned" in text]


def memory_path(service: Any, key: Any) -> Path:
    return service.store.model_folder(key) / "memory.npz"


# -- what decides it ----------------------------------------------------------------------------------------------


def test_images_that_agree_by_position_make_a_roi_aligned(service, key) -> None:
    bank = fit(service, key, agreeing(*range(8))).bank
    assert (bank.aligned, bank.is_local, bank.options.aligned) == (True, True, "auto")
    in_order = sorted((good_image(seed) for seed in range(8)), key=pixel_digest)
    maps = np.stack([position_map(image) for image in in_order])
    np.testing.assert_array_equal(bank.position_maps, maps)
    assert bank.alignment == alignment(maps[:, :, : len(PLACE_CHANNELS)], EVERYWHERE) > 0.7
    assert not bank.position_maps.flags.writeable


def test_images_that_do_not_agree_make_a_roi_that_is_not_aligned(service, key) -> None:
    bank = fit(service, key, differing(*range(8))).bank
    assert (bank.aligned, bank.is_local) == (False, False)
    assert bank.alignment == pytest.approx(0, abs=0.1)


def test_what_lies_outside_the_shape_does_not_count(service, key) -> None:
    halves = []
    for seed in range(8):
        image = good_image(seed)
        image[:, 32:] = unaligned_image(seed)[:, 32:]
        halves.append(Upload(name=f"{seed}.png", data=encoded(image)))
    inside = fit(service, key, halves, shape=Rect(x=0, y=0, w=24, h=64)).bank
    outside = fit(service, key, halves, shape=Rect(x=36, y=0, w=28, h=64), mode="replace").bank
    assert inside.aligned
    assert not outside.aligned
    assert outside.alignment < 0.1 < 0.6 < inside.alignment


def test_fewer_than_eight_parts_decide_nothing_however_many_images_they_have(service, key) -> None:
    same = [replace(upload, part_id="P") for upload in agreeing(0, 1)]
    bank = fit(service, key, [*same, *agreeing(*range(2, 8))]).bank
    assert (bank.n_parts, bank.alignment, bank.aligned, bank.is_local) == (7, None, None, False)
    bank = fit(service, key, agreeing(8)).bank
    assert bank.alignment is not None
    assert (bank.n_parts, bank.aligned, bank.is_local) == (8, True, True)


@pytest.mark.parametrize(("asked", "decided"), [("yes", True), ("no", False)])
def test_a_word_of_the_caller_goes_before_the_images(services, key, asked, decided) -> None:
    for models, images in (("a", agreeing(*range(8))), ("b", differing(*range(8)))):
        bank = fit(services(models), key, images, aligned=asked).bank
        assert (bank.aligned, bank.options.aligned) == (decided, asked)
        assert bank.alignment is not None


def test_a_roi_that_is_said_to_be_aligned_waits_for_its_parts_and_the_report_says_so(service, key) -> None:
    report = fit(service, key, differing(0, 1, 2), aligned="yes")
    assert (report.bank.aligned, report.bank.is_local) == (True, False)
    (warning,) = warnings_of(report)
    assert "from 8 good parts on, and it has 3" in warning
    report = fit(service, key, differing(*range(3, 8)))
    assert (report.bank.aligned, report.bank.is_local, warnings_of(report)) == (True, True, [])


@pytest.mark.parametrize(("setting", "aligned"), [("auto", True), ("no", False)])
def test_a_new_roi_is_fitted_as_the_service_is_set(tmp_path, key, setting, aligned) -> None:
    settings = Settings(models_dir=tmp_path / "models", aligned=setting)
    service = build_service(settings, extractor=ExtractorLoader(lambda: (FakeExtractor(), None)))
    bank = fit(service, key, agreeing(*range(8))).bank
    service.close()
    assert (bank.aligned, bank.options.aligned) == (aligned, setting)


# -- how long it holds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "others"), [(agreeing, differing), (differing, agreeing)])
def test_what_the_first_images_decided_is_kept_and_a_figure_that_has_crossed_the_line_is_named(
    service, key, first, others
) -> None:
    decided = fit(service, key, first(*range(8))).bank
    assert decided.aligned == (first is agreeing)
    report = fit(service, key, others(*range(50, 82)))
    assert report.bank.aligned == decided.aligned
    assert (report.bank.alignment >= ALIGNED_FROM) != report.bank.aligned
    (warning,) = warnings_of(report)
    assert f"{report.bank.alignment:.2f}" in warning
    assert "mode=replace" in warning
    # Asking for what is asked for already changes nothing.
    assert fit(service, key, others(50), aligned="auto").bank.checksum == report.bank.checksum
    images = [*first(*range(8)), *others(*range(50, 82))]
    anew = fit(service, key, images, mode="replace")
    assert anew.bank.aligned != decided.aligned
    assert warnings_of(anew) == []


def test_a_decision_outlives_the_parts_that_it_rested_on(service, key) -> None:
    bank = fit(service, key, agreeing(*range(8))).bank
    service.store.images(key).delete(bank.image_digests[:3], "ok")
    report = fit(service, key, agreeing(8))
    assert (report.bank.n_parts, report.bank.alignment) == (6, None)
    assert (report.bank.aligned, report.bank.is_local) == (True, False)
    assert len(warnings_of(report)) == 1


def test_what_a_roi_was_fitted_with_goes_on_until_a_call_names_another(service, key) -> None:
    def asked(*seeds: int, **options: Any) -> tuple[Any, ...]:
        bank = fit(service, key, agreeing(*seeds), **options).bank
        return bank.options.aligned, bank.aligned

    assert asked(*range(8), aligned="no") == ("no", False)
    assert asked(8) == ("no", False)
    assert asked(9, aligned="yes") == ("yes", True)
    assert asked(10) == ("yes", True)
    assert asked(11, aligned="no") == ("no", False)
    # Nobody's word any more: the images are looked at.
    assert asked(12, aligned="auto") == ("auto", True)
    assert asked(13) == ("auto", True)
    assert asked(*range(8), mode="replace", aligned="no") == ("no", False)
    assert asked(*range(8), mode="replace") == ("auto", True)


def test_another_model_of_the_roi_decides_for_itself(service, key) -> None:
    other = replace(key, model_key="other")
    fit(service, key, agreeing(*range(8)), aligned="no")
    assert fit(service, other, agreeing(*range(8))).bank.aligned is True


@pytest.mark.parametrize("remedy", ["fit", "refit"])
def test_a_damaged_memory_still_says_what_was_decided(service, key, remedy) -> None:
    fit(service, key, agreeing(*range(8)))
    bank = fit(service, key, differing(*range(32))).bank
    path = memory_path(service, key)
    before = path.read_bytes()
    path.write_bytes(before[:-100])
    if remedy == "refit":
        service.refitter.refit(key)
    else:
        fit(service, key, agreeing(0))
    assert service.describe(key).bank.checksum == bank.checksum
    assert path.read_bytes() == before


@pytest.mark.parametrize("remedy", ["fit", "refit"])
def test_a_memory_of_an_older_format_says_nothing_and_its_images_decide(service, key, remedy) -> None:
    bank = fit(service, key, agreeing(*range(8)), aligned="no").bank
    memory_path(service, key).write_bytes(older_memory(bank, 2))
    if remedy == "refit":
        service.refitter.refit(key)
    else:
        fit(service, key, agreeing(0))
    anew = service.describe(key).bank
    assert (anew.aligned, anew.options.aligned, anew.alignment) == (True, "auto", bank.alignment)


def test_a_refit_keeps_what_was_asked_for_and_decided(services, key) -> None:
    fit(services(), key, agreeing(*range(8)))
    before = fit(services(), key, differing(*range(32))).bank
    other = services(extractor=FakeExtractor(variant="b"))
    other.refitter.refit(key)
    anew = other.describe(key).bank
    assert anew.extractor_id != before.extractor_id
    assert (anew.aligned, anew.alignment, anew.options) == (True, before.alignment, before.options)
    np.testing.assert_array_equal(anew.position_maps, before.position_maps)


# -- the same images give the same memory -------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(64, 64), (64, 65), (65, 64)])
def test_images_of_other_sizes_and_nearly_the_same_aspect_ratio_are_compared_as_well(service, key, sizes) -> None:
    height, width = sizes
    images = [good_image(seed, image_hw=(192 + 2 * (height - 64), 192 + 2 * (width - 64))) for seed in range(4)]
    uploads = [Upload(name=f"{n}.png", data=encoded(image), part_id=f"{n}") for n, image in enumerate(images)]
    larger = [
        Upload(name=f"l{seed}.png", data=encoded(good_image(seed, image_hw=(192, 192))), part_id=f"{seed}")
        for seed in range(4, 8)
    ]
    assert fit(service, key, [*uploads, *larger]).bank.alignment is not None


@pytest.mark.parametrize("calls", [[range(10)], [range(9, -1, -1)], [[4, 2], [9, 0, 1], [3, 5, 8, 7, 6]]])
def test_order_and_number_of_calls_do_not_change_the_memory(services, key, calls) -> None:
    once, split = services("once"), services("split")
    fit(once, key, agreeing(*range(10)))
    for seeds in calls:
        fit(split, key, agreeing(*seeds))
    assert memory_path(split, key).read_bytes() == memory_path(once, key).read_bytes()
    assert split.describe(key).bank.aligned is True


def test_what_was_decided_and_what_was_asked_for_are_under_the_checksum(service, key) -> None:
    bank = fit(service, key, agreeing(*range(8))).bank
    others = [
        replace(bank, aligned=False),
        replace(bank, aligned=None),
        replace(bank, options=replace(bank.options, aligned="yes")),
        replace(bank, position_maps=bank.position_maps + np.float16(1)),
    ]
    checksums = [each.checksum for each in (bank, *others)]
    assert all(a != b for a, b in itertools.combinations(checksums, 2))


def test_a_memory_without_a_position_map_of_each_image_is_refused(service, key) -> None:
    bank = fit(service, key, agreeing(*range(3))).bank
    with pytest.raises(ValueError, match="position_maps must hold a map"):
        replace(bank, position_maps=bank.position_maps[:2])
