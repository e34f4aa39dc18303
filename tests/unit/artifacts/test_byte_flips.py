"""Bytes that change on the disk: always found, never another score, never a crash, and the file is set aside."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from backend.artifacts.heatmaps import save_heatmap
from backend.artifacts.layout import MARKER
from backend.artifacts.model_key import ModelKey
from backend.artifacts.quarantine import set_aside_copies
from backend.errors import ArtefactCorrupt, NotFound
from backend.extractors.base import embeddings_key
from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import encode_png
from backend.maintenance.verifying import verify_folder
from backend.services.fit_request import Upload
from backend.services.inspection import InspectionService
from backend.services.jobs import Jobs
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor, encoded, good_image

KEY = ModelKey(role_id="Inspection", roi_id="inspection-1")
FLIPS = 200
"""Positions in each file, spread evenly and shifted at random within their stretch."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InspectionService]:
    models = tmp_path_factory.mktemp("flips") / "models"
    made = build_service(
        Settings(models_dir=models), extractor=ExtractorLoader(lambda: (FakeExtractor(whitens=True), None))
    )
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in range(3)]
    made.fit_ok(KEY, uploads, mm_per_px=0.2)
    made.calibrate(KEY)
    save_heatmap(made.store, KEY, "9" * 64, encode_png(good_image(9)))
    yield made
    made.close()


@pytest.fixture
def roi(service: InspectionService) -> Path:
    return service.store.roi_folder(KEY)


def damaged(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes with one of them changed, at positions all over, and cut off, at lengths of every kind."""
    rng = random.Random(0)
    step = max(1.0, len(whole) / FLIPS)
    for number in range(min(FLIPS, len(whole))):
        at = min(len(whole) - 1, int(number * step) + rng.randrange(int(step)))
        broken = bytearray(whole)
        broken[at] ^= rng.choice([0x01, 0x02, 0x10, 0x20, 0x80, 0xFF])
        yield f"byte {at} of {len(whole)}", bytes(broken)
    cuts = {0, 1, 2, 3, 4, 8, 16, 30, 31, 100, 512, 4096, *(len(whole) - n for n in (1, 2, 22, 32, 64, 65, 512))}
    cuts |= {len(whole) * n // 8 for n in range(1, 8)}
    for length in sorted(cut for cut in cuts if 0 <= cut < len(whole)):
        yield f"cut to {length} of {len(whole)}", whole[:length]
    yield "lengthened", whole + b"\0"
    yield "zeros", b"\0" * len(whole)
    yield "doubled", whole + whole


def clean(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    for copy in set_aside_copies(path):
        copy.unlink()


@pytest.mark.parametrize("name", ["memory.npz", "calib.json"])
def test_a_changed_memory_or_calibration_gives_an_error_and_never_another_score(
    service: InspectionService, roi: Path, name: str
) -> None:
    expected = service.infer(KEY, good_image(9), mm_per_px=0.2)
    whole = (roi / name).read_bytes()
    for case, broken in damaged(whole):
        (roi / name).write_bytes(broken)
        for _ in range(2):  # while it is set aside, too
            with pytest.raises(ArtefactCorrupt):
                service.infer(KEY, good_image(9), mm_per_px=0.2)
            assert [copy.read_bytes() for copy in set_aside_copies(roi / name)] == [broken], case
            assert not (roi / name).exists(), case
        clean(roi / name, whole)
    again = service.infer(KEY, good_image(9), mm_per_px=0.2)
    assert (again.score, again.threshold) == (expected.score, expected.threshold)


@pytest.mark.parametrize("suffix", [".png", ".json"])
def test_a_changed_image_is_never_handed_out(service: InspectionService, roi: Path, suffix: str) -> None:
    path = sorted((roi / "images" / "ok").glob(f"*{suffix}"))[0]
    whole = path.read_bytes()
    images = service.store.images(KEY)
    for case, broken in damaged(whole):
        path.write_bytes(broken)
        with service.store.lock(KEY):  # as a fit reads it
            (image,) = [image for image in images.labelled("ok") if image.digest == path.stem]
            with pytest.raises(ArtefactCorrupt):
                images.read(image)
        assert [copy.read_bytes() for copy in set_aside_copies(path)] == [broken], case
        assert len(images.labelled("ok")) == 3, case
        clean(path, whole)
    (image,) = [image for image in images.labelled("ok") if image.digest == path.stem]
    assert images.read(image)


def test_changed_embeddings_are_extracted_again_and_the_memory_is_the_same(
    service: InspectionService, roi: Path
) -> None:
    path = sorted(roi.glob("embeddings/*/*.npy"))[0]
    whole = path.read_bytes()
    images = service.store.images(KEY)
    checksum = service.describe(KEY).bank.checksum
    made_by = embeddings_key(FakeExtractor(whitens=True))
    assert images.get_embeddings(path.stem, made_by) is not None
    for case, broken in damaged(whole):
        path.write_bytes(broken)
        assert images.get_embeddings(path.stem, made_by) is None, case
    report = service.fit_ok(KEY, [Upload(name="0.png", data=encoded(good_image(0)))], mm_per_px=0.2)
    assert report.bank.checksum == checksum


def test_a_changed_index_or_heat_map_changes_no_score_and_verify_finds_it(
    service: InspectionService, roi: Path
) -> None:
    expected = service.infer(KEY, good_image(9), mm_per_px=0.2).score
    index = roi / "index.faiss"
    whole = index.read_bytes()
    for _, broken in list(damaged(whole))[::40]:
        index.write_bytes(broken)
        assert service.infer(KEY, good_image(9), mm_per_px=0.2).score == expected
        assert [problem.fault for problem in verify_folder(service.store.models_dir)] == ["mismatch"]
    index.write_bytes(whole)
    (heatmap,) = (roi / "heatmaps").glob("*.png")
    whole = heatmap.read_bytes()
    heatmap.write_bytes(whole[: len(whole) // 2])
    assert [problem.path for problem in verify_folder(service.store.models_dir)] == [
        heatmap.relative_to(service.store.models_dir).as_posix()
    ]
    heatmap.write_bytes(whole)
    assert verify_folder(service.store.models_dir) == []


def test_a_changed_job_is_no_job(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    has_ended = threading.Event()
    job = jobs.start("fit_ok", lambda _: {"threshold": 0.25, "name": "größe"}, ended=has_ended.set)
    assert has_ended.wait(60)
    jobs.close()
    path = tmp_path / f"{job.job_id}.json"
    whole = path.read_bytes()
    for case, broken in damaged(whole):
        path.write_bytes(broken)
        with pytest.raises(NotFound):
            Jobs(tmp_path).get(job.job_id)
        path.write_bytes(whole)
        assert Jobs(tmp_path).get(job.job_id).result == {"threshold": 0.25, "name": "größe"}, case


def every_file(models: Path) -> list[Path]:
    return sorted(path for path in models.rglob("*") if path.is_file() and path.name not in (".lock", MARKER))


@pytest.mark.parametrize("change", ["flip", "cut", "empty"])
def test_verify_finds_a_change_in_every_file_of_the_folder(service: InspectionService, change: str) -> None:
    changes: dict[str, Callable[[bytes], bytes]] = {
        "flip": lambda whole: (
            whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 4]) + whole[len(whole) // 2 + 1 :]
        ),
        "cut": lambda whole: whole[:-1],
        "empty": lambda _whole: b"",
    }
    models = service.store.models_dir
    assert verify_folder(models) == []
    for path in every_file(models):
        whole = path.read_bytes()
        path.write_bytes(changes[change](whole))
        if not (path.parent.name == "heatmaps" and change != "empty"):  # a picture for people, without a digest
            assert verify_folder(models), path
        path.write_bytes(whole)
    assert verify_folder(models) == []
    assert np.isfinite(service.infer(KEY, good_image(9), mm_per_px=0.2).score)
