"""Pixels in flight: counted from before they are decoded until nobody refers to them, over all calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.deadlines import DEADLINE_S
from backend.errors import BadImage, OutOfResources
from backend.imaging import pixel_budget
from backend.imaging.image_codec import decode_image
from backend.imaging.pixel_budget import IN_FLIGHT, PixelBudget, pixels_for, usable_memory_bytes
from backend.settings import Settings
from backend.wiring import pixels_in_flight
from tests.testkit.app import Api, answer_of, error_of, ready, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import FakeExtractor, encoded

EDGE = 200
PIXELS = EDGE * EDGE


def picture(seed: int) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_budget, "WAIT_S", 0.2)
    monkeypatch.setattr(pixel_budget, "WAIT_IN_JOBS_S", 0.2)


def test_pixels_count_until_the_last_reference_to_them_is_gone() -> None:
    before = IN_FLIGHT.held
    image = decode_image(picture(0), max_pixels=10**6)
    part = image[10:20, 10:20]
    assert IN_FLIGHT.held - before == PIXELS
    del image
    assert IN_FLIGHT.held - before == PIXELS
    del part
    assert IN_FLIGHT.held == before


def test_what_cannot_be_decoded_is_not_counted() -> None:
    before = IN_FLIGHT.held
    with pytest.raises(BadImage):
        decode_image(picture(0)[:-5000], max_pixels=10**6)
    assert IN_FLIGHT.held == before


def test_one_image_always_fits_and_a_second_waits_for_its_room() -> None:
    budget = PixelBudget(100)
    budget.take(1000)
    with pytest.raises(OutOfResources, match="BDI_MAX_HELD_MPX") as refused:
        budget.take(1)
    assert refused.value.retry_after_s
    waiting = threading.Thread(target=budget.take, args=(60,))
    pixel_budget.WAIT_IN_JOBS_S = 60.0
    waiting.start()
    budget.give_back(1000)
    waiting.join(60)
    assert budget.held == 60


def test_nobody_waits_longer_than_the_request_may_take() -> None:
    budget = PixelBudget(100)
    budget.take(100)
    DEADLINE_S.set(time.monotonic())
    with pytest.raises(OutOfResources):
        budget.take(1)
    DEADLINE_S.set(None)


def test_the_default_follows_the_memory() -> None:
    assert pixels_in_flight(Settings(max_held_mpx=7)) == 7_000_000
    assert pixels_in_flight(Settings()) == pixels_for(usable_memory_bytes()) > 0


class Gated(FakeExtractor):
    """Extracts nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()

    def extract(self, image_bgr: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(60)
        return super().extract(image_bgr)


@pytest.fixture
def extractor() -> Gated:
    return Gated()


@pytest.fixture
def api(tmp_path: Path, extractor: Gated, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with running_app(tmp_path / "models", loader=ready(extractor)) as started:
        monkeypatch.setattr(IN_FLIGHT, "max_pixels", PIXELS)
        yield started
        extractor.gate.set()


def test_an_image_beside_those_in_work_is_503_and_taken_again_afterwards(api: Api, extractor: Gated) -> None:
    extractor.gate.set()
    answer_of(api.fit([picture(n) for n in range(3)]))
    extractor.gate.clear()
    extractor.entered.clear()
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(api.infer(picture(9))))
    first.start()
    assert extractor.entered.wait(60)
    response = api.infer(picture(8))
    error_of(response, 503, "out_of_resources")
    assert response.headers["Retry-After"] == "5"
    error_of(api.fit([picture(7)]), 503, "out_of_resources")
    extractor.gate.set()
    first.join(60)
    answer_of(found[0])
    answer_of(api.infer(picture(8)))


def test_a_call_with_many_images_needs_room_for_one_of_them(api: Api, extractor: Gated) -> None:
    extractor.gate.set()
    form = {"role_id": ROLE, "roi_id": ROI}
    files = [("images", (f"{n}.png", picture(n))) for n in range(4)]
    answer_of(api.client.post("/datasets/ok/upload", data=form, files=files))
    answer_of(api.fit([picture(n) for n in (3, 4, 4, 5)], use_dataset="true"))
    answer_of(api.client.post("/infer_dataset", json={**form, "default_mm_per_px": 0.2}))
    assert IN_FLIGHT.held == 0, "and holds nothing afterwards"
