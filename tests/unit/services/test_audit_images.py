from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backend.artifacts.layout import AUDIT_IMAGES, classify_path
from backend.artifacts.model_key import ModelKey
from backend.errors import ArtefactCorrupt, NotFound, StorageFull
from backend.imaging.image_codec import decode_image
from backend.services import audit_images
from backend.services.audit_images import AuditImages

KEY = ModelKey(recipe_id="default", role_id="Inspection", roi_id="Bohrung-ä", model_key="")
EDGE = 32


def inspection(decision: str | None, number: int) -> Any:
    """Return what of an inspection is kept."""
    noise = np.random.default_rng(number).integers(0, 256, (EDGE, EDGE), dtype=np.uint8)
    return SimpleNamespace(
        score=0.5,
        threshold=0.4,
        decision=decision,
        map=noise.astype(np.float32),
        mask=noise > 0,
        image_bgr=None,
        heatmap=noise,
        heatmap_full_scale=1.0,
        regions=(),
        params={"image_digest": f"{number:064x}", "shape": None},
    )


def keep(images: AuditImages, number: int, decision: str | None = "ok", key: ModelKey = KEY, size: int = 1000) -> None:
    images.keep(number, key, inspection(decision, number), number.to_bytes(2, "big") * (size // 2))


def kept_numbers(images: AuditImages, numbers: range) -> list[int]:
    found = []
    for number in numbers:
        try:
            images.find(number, f"{number:064x}")
        except NotFound:
            continue
        found.append(number)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / AUDIT_IMAGES


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_kept_comes_back(folder: Path) -> None:
    images = AuditImages(folder, max_bytes=1_000_000)
    keep(images, 7, "ng")
    images.close()
    found = AuditImages(folder, max_bytes=0).find(7, f"{7:064x}")
    assert found.image == (7).to_bytes(2, "big") * 500
    heatmap = decode_image(found.heatmap_png, max_pixels=EDGE**2)
    np.testing.assert_array_equal(heatmap[:, :, 0], inspection("ng", 7).heatmap)
    assert (found.facts["roi_id"], found.facts["decision"], found.facts["regions"]) == ("Bohrung-ä", "ng", [])


def test_a_flood_of_good_parts_does_not_push_out_the_bad_ones(folder: Path) -> None:
    images = AuditImages(folder, max_bytes=60_000)
    other = ModelKey(recipe_id="default", role_id="Inspection", roi_id="other", model_key="")
    for number in range(1, 4):
        keep(images, number, "ng")
    keep(images, 4, None, other)
    for number in range(5, 150):
        keep(images, number, "ok")
        while images._waiting_bytes:
            threading.Event().wait(0.001)
    images.close()
    found = kept_numbers(images, range(1, 150))
    assert found[:4] == [1, 2, 3, 4]
    assert found[4:] == [*range(150 - len(found[4:]), 150)], "the newest good ones"
    assert 10 < len(found) < 60
    assert sum(path.stat().st_size for path in files(folder)) <= 60_000
    assert images.dropped == 0


def test_images_leave_room_on_the_disk_for_what_is_more_important(folder: Path, monkeypatch: Any) -> None:
    taken = 0

    def disk(_: Path) -> SimpleNamespace:
        used = sum(path.stat().st_size for path in files(folder))
        return SimpleNamespace(total=100_000, free=100_000 - used - taken)

    monkeypatch.setattr(audit_images, "disk_space", disk)
    images = AuditImages(folder, max_bytes=1_000_000)
    for number in range(1, 60):
        keep(images, number)
        while images._waiting_bytes:
            threading.Event().wait(0.001)
    assert 60_000 < sum(path.stat().st_size for path in files(folder)) <= 90_000
    assert images.dropped == 0
    taken = 200_000
    keep(images, 60)
    images.close()
    assert (files(folder), images.dropped) == ([], 1), "the oldest make room, and none is kept where there is none"


def test_the_limit_holds_after_a_restart_too_and_with_another_process(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(audit_images, "_LOOK_AGAIN", 4)
    first, second = (AuditImages(folder, max_bytes=30_000) for _ in range(2))
    for number in range(1, 80):
        keep(first if number % 2 else second, number)
        while first._waiting_bytes or second._waiting_bytes:
            threading.Event().wait(0.001)
    first.close()
    second.close()
    third = AuditImages(folder, max_bytes=10_000)
    keep(third, 80)
    third.close()
    assert sum(path.stat().st_size for path in files(folder)) <= 10_000
    assert kept_numbers(third, range(1, 81))[-1] == 80


def test_without_room_nothing_is_written(folder: Path) -> None:
    images = AuditImages(folder, max_bytes=0)
    keep(images, 1)
    images.close()
    assert not folder.exists()


def test_a_disk_that_is_full_or_slow_neither_stops_nor_delays_an_inspection(folder: Path, monkeypatch: Any) -> None:
    go_on = threading.Event()

    def full(path: Path, data: bytes) -> None:
        go_on.wait(30)
        raise StorageFull("The disk is full.")

    monkeypatch.setattr(audit_images, "write_atomic", full)
    images = AuditImages(folder, max_bytes=1_000_000)
    for number in range(1, 101):
        keep(images, number)
    assert images.dropped >= 100 - audit_images._WAITING - 1
    go_on.set()
    images.close()
    assert images.dropped == 100
    assert not files(folder)


def test_large_images_wait_only_as_far_as_there_is_memory(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(audit_images, "_WAITING_BYTES", 3000)
    images = AuditImages(folder, max_bytes=1_000_000)
    keep(images, 1, size=4000)
    images.close()
    assert images.dropped == 1


def test_after_it_was_closed_nothing_is_taken(folder: Path) -> None:
    images = AuditImages(folder, max_bytes=1_000_000)
    images.close()
    keep(images, 1)
    assert (images.dropped, files(folder)) == (1, [])


def test_a_file_that_has_changed_on_the_disk_is_named_as_damaged(folder: Path) -> None:
    images = AuditImages(folder, max_bytes=1_000_000)
    keep(images, 1)
    images.close()
    (path,) = files(folder)
    whole = path.read_bytes()
    for broken in (whole[:200], b"", whole.replace((1).to_bytes(2, "big") * 9, b"x" * 18, 1)):
        path.write_bytes(broken)
        with pytest.raises(ArtefactCorrupt):
            images.find(1, f"{1:064x}")


def test_the_row_of_another_audit_file_does_not_get_the_image_of_its_number(folder: Path) -> None:
    images = AuditImages(folder, max_bytes=1_000_000)
    keep(images, 1)
    images.close()
    with pytest.raises(NotFound):
        images.find(1, "f" * 64)


def test_the_models_folder_knows_these_files(folder: Path) -> None:
    images = AuditImages(folder, max_bytes=1_000_000)
    keep(images, 1)
    images.close()
    (path,) = files(folder)
    assert classify_path(path.relative_to(folder.parent).as_posix()).kind == "audit"
