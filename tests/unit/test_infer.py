from __future__ import annotations

import inspect
from contextlib import closing

import pytest

from backend.errors import BadShape, MemoryNotFound
from backend.extractors.loader import ExtractorLoader
from backend.infer import infer_one
from backend.services.fit_request import Upload
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image


def test_infer_one_has_the_arguments_that_the_order_fixed():
    parameters = inspect.signature(infer_one).parameters
    assert {name: p.default for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY} == {
        "image": inspect.Parameter.empty,
        "role_id": inspect.Parameter.empty,
        "roi_id": inspect.Parameter.empty,
        "mm_per_px": inspect.Parameter.empty,
        "shape": None,
        "k": None,
        "p_score": None,
        "blur_sigma": None,
        "area_mm2_thr": None,
    }


@pytest.fixture
def fitted(service, key):
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in range(6)]
    service.fit_ok(key, uploads, mm_per_px=0.2, coreset_rate=0.5)
    return service


def inspect_one(service, image, **options):
    return infer_one(image, "Inspection", "inspection-1", 0.2, service=service, **options)


def test_infer_one_takes_pixels_or_bytes_and_finds_the_same(fitted):
    image = defective_image(50)
    by_pixels, by_bytes = inspect_one(fitted, image), inspect_one(fitted, encoded(image))
    assert by_pixels == by_bytes
    assert (by_pixels.threshold, by_pixels.decision, by_pixels.regions) == (None, None, ())
    assert by_pixels.map.shape == (64, 64)


def test_infer_one_tells_a_defect_from_a_good_part_and_says_where(fitted, key):
    fitted.calibrate(key)
    good, bad = inspect_one(fitted, good_image(50)), inspect_one(fitted, defective_image(50))
    assert (good.decision, good.regions) == ("ok", ())
    assert bad.decision == "ng"
    assert bad.score > bad.threshold > good.score
    x, y, w, h = bad.regions[0].bbox_xywh_px
    assert abs(x + w / 2 - 32) <= 4
    assert abs(y + h / 2 - 32) <= 4
    assert bad.regions[0].peak_score == bad.map.max()


def test_infer_one_takes_a_shape_as_text_or_as_an_object(fitted):
    image = defective_image(50)
    by_text = inspect_one(fitted, image, shape='{"kind":"rect","x":0,"y":0,"w":16,"h":64}')
    by_object = inspect_one(fitted, image, shape={"kind": "rect", "x": 0, "y": 0, "w": 16, "h": 64})
    assert by_text == by_object
    assert by_text.mask.sum() == 16 * 64
    assert by_text.score < inspect_one(fitted, image).score
    with pytest.raises(BadShape):
        inspect_one(fitted, image, shape={"kind": "star"})


def test_infer_one_takes_what_is_left_out_from_the_roi(tmp_path, key):
    settings = Settings(models_dir=tmp_path / "models", k=3, blur_sigma=4.0, coreset_rate=0.5)
    service = build_service(settings, extractor=ExtractorLoader(lambda: (FakeExtractor(), None)))
    with closing(service):
        service.fit_ok(key, [Upload(name=f"{n}.png", data=encoded(good_image(n))) for n in range(6)], mm_per_px=0.2)
        service.calibrate(key)
        image = defective_image(50)
        by_service, by_script = service.infer(key, image, mm_per_px=0.2), inspect_one(service, image)
        assert by_script == by_service
        assert (by_script.params["k"], by_script.params["blur_sigma"], by_script.decision) == (3, 4.0, "ng")
        assert inspect_one(service, image, k=3, blur_sigma=4.0) == by_service
        for other in ({"k": 1}, {"blur_sigma": 1.0}):  # a score on another scale than the threshold
            found = inspect_one(service, image, **other)
            assert (found.threshold, found.decision, found.regions) == (None, None, ())
            assert found.score != by_service.score


def test_infer_one_uses_every_setting_that_it_takes(fitted):
    image = defective_image(50)
    plain = inspect_one(fitted, image)
    assert inspect_one(fitted, image, k=3).score > plain.score
    assert inspect_one(fitted, image, p_score=50).score < plain.score
    assert inspect_one(fitted, image, blur_sigma=9.0).map.max() < plain.map.max()
    assert inspect_one(fitted, image, area_mm2_thr=7.0).params["area_mm2_thr"] == 7.0


def test_a_learned_image_is_scored_without_itself(fitted):
    inspection = inspect_one(fitted, good_image(0))
    assert inspection.params["scoring"] == "leave_one_out"
    assert inspection.score > 0.3 * inspect_one(fitted, good_image(50)).score
    assert inspect_one(fitted, good_image(50)).params["scoring"] == "new"


def test_infer_one_on_a_roi_that_was_never_fitted_says_so(service):
    with pytest.raises(MemoryNotFound, match="run /fit_ok first"):
        inspect_one(service, good_image(0))
