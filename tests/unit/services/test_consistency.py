from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backend.artifacts.model_key import ModelKey
from backend.demo.samples import render_good
from backend.errors import ArtefactCorrupt, ExtractorMismatch, Unavailable
from backend.extractors.dinov2 import DinoV2Features
from backend.imaging.image_codec import encode_png
from backend.services.fit_request import Upload
from tests.testkit import dinov2_files
from tests.testkit.fakes import FakeExtractor, encoded, good_image

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")


class Rounded(FakeExtractor):
    """The same network in another precision: every row moved a little, and brought back to unit length."""

    def __init__(self, moved: float) -> None:
        super().__init__()
        self.precision = "bf16"
        self._moved = moved

    def extract(self, image_bgr):
        rows, grid_hw = super().extract(image_bgr)
        noise = np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
        rows = rows + np.float32(self._moved) * noise
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), grid_hw


def picture(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def fitted(services, extractor):
    service = services("agreement", extractor)
    service.fit_ok(KEY, [Upload(name=f"{n}.png", data=picture(n)) for n in range(5)], mm_per_px=0.2, coreset_rate=0.5)
    return service


def test_a_memory_is_read_in_a_precision_that_hardly_moves_its_scores(services):
    score = fitted(services, FakeExtractor()).infer(KEY, picture(9), mm_per_px=0.2).score
    found = services("agreement", Rounded(1e-5)).infer(KEY, picture(9), mm_per_px=0.2)
    assert found.params["precision"] == "bf16"
    assert found.score == pytest.approx(score, rel=0.01)


def test_a_precision_that_moves_the_scores_by_more_than_one_percent_is_refused(services):
    fitted(services, FakeExtractor())
    with pytest.raises(ExtractorMismatch, match=r"fitted in fp32.* computes in bf16.*% of the threshold"):
        services("agreement", Rounded(0.3)).infer(KEY, picture(9), mm_per_px=0.2)


def test_a_precision_that_cannot_be_measured_is_refused(services, tmp_path):
    service = fitted(services, FakeExtractor())
    images = service.store.images(KEY)
    for image in images.labelled("ok"):
        images.delete([image.digest], "ok")
    with pytest.raises(ExtractorMismatch, match="cannot be measured"):
        services("agreement", Rounded(1e-5)).infer(KEY, picture(9), mm_per_px=0.2)


def test_a_fit_in_another_precision_learns_all_images_in_it(services):
    fitted(services, FakeExtractor())
    service = services("agreement", Rounded(1e-5))
    report = service.fit_ok(KEY, [Upload(name="5.png", data=picture(5))], mm_per_px=0.2, coreset_rate=0.5)
    assert (report.bank.precision, len(report.bank.image_digests)) == ("bf16", 6)
    fresh = services("fresh", Rounded(1e-5))
    uploads = [Upload(name=f"{n}.png", data=picture(n)) for n in range(6)]
    assert fresh.fit_ok(KEY, uploads, mm_per_px=0.2, coreset_rate=0.5).bank.checksum == report.bank.checksum


@pytest.mark.slow
def test_dinov2_in_bf16_moves_the_scores_of_a_memory_made_in_fp32_by_less_than_one_percent(services, tmp_path):
    pytest.importorskip("openvino")
    weights = dinov2_files.write_timm_file(tmp_path / "model.safetensors", dinov2_files.dinov2_tensors())
    in_fp32 = DinoV2Features(weights=weights, input_size=112, engine="torch", precision="fp32", device="cpu")
    try:
        in_bf16 = DinoV2Features(weights=weights, input_size=112, engine="openvino", precision="bf16", device="cpu")
    except Unavailable as error:
        pytest.skip(error.sentence)
    uploads = [Upload(name=f"{n}.png", data=encode_png(render_good(n, size_px=128).image_bgr)) for n in range(6)]
    made = services("dinov2", in_fp32).fit_ok(KEY, uploads, mm_per_px=0.6, coreset_rate=0.1)
    unseen = encode_png(render_good(9, size_px=128).image_bgr)
    expected = services("dinov2", in_fp32).infer(KEY, unseen, mm_per_px=0.6)
    found = services("dinov2", in_bf16).infer(KEY, unseen, mm_per_px=0.6)
    assert (found.params["precision"], made.bank.precision) == ("bf16", "fp32")
    assert abs(found.score - expected.score) < 0.01 * made.scores.suggested_threshold()


def test_a_memory_of_another_width_than_its_extractor_makes_is_named_in_words(service, key):
    fitted = service.fit_ok(key, [Upload(name="a.png", data=encoded(good_image(0)))], mm_per_px=0.2).bank
    narrow = np.ascontiguousarray(fitted.vectors[:, :2])
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    with service.store.lock(key):
        service.store.save_bank(key, replace(fitted, vectors=narrow))
    with pytest.raises(ArtefactCorrupt, match="columns"):
        service.infer(key, encoded(good_image(1)), mm_per_px=0.2)
