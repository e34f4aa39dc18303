"""What a client sends is what is inspected, whatever file it comes in; half a picture is refused everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import ROLE
from tests.testkit.fakes import encoded, plate, plates
from tests.testkit.tiff_files import tiff_of

PART = plate(9)
GREY = np.repeat(PART[:, :, 1:2], 3, axis=2)
DEEP = GREY[:, :, 0].astype(np.uint16) * 257


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("models")
    with running_app(folder) as started:
        answer_of(started.fit(plates(range(4))))
        answer_of(started.calibrate())
        yield started


@pytest.mark.parametrize(
    "data",
    [
        encoded(GREY, "BMP"),
        encoded(GREY, "WEBP", lossless=True),
        *(tiff_of(GREY[:, :, 0], model=1, t274=turned) for turned in (1, 3, 6)),
        tiff_of(65535 - DEEP, model=0, bits=16),
        tiff_of(np.dstack([GREY, np.zeros_like(GREY[:, :, 0])]), model=2, t338=2),
    ],
    ids=["bmp", "webp", "tiff", "tiff upside down", "tiff on its side", "tiff, white is zero", "tiff, transparent"],
)
def test_a_part_is_the_same_part_in_every_file(api: Api, data: bytes) -> None:
    as_png, given = answer_of(api.infer(encoded(GREY))), answer_of(api.infer(data))
    assert given["params"]["image_digest"] == as_png["params"]["image_digest"]
    assert given["score"] == as_png["score"]


def damaged_jpeg() -> bytes:
    data = encoded(PART, "JPEG", quality=90)
    return data[: len(data) * 2 // 3] + bytes(len(data) // 3) + b"\xff\xd9"


def test_half_a_jpeg_is_refused_wherever_images_come_in(api: Api) -> None:
    form = {"role_id": ROLE, "roi_id": "another", "mm_per_px": "0.2"}
    files = [("images", ("half.jpg", damaged_jpeg(), "image/jpeg"))]
    refused = [
        api.infer(damaged_jpeg()),
        api.client.post("/fit_ok", data=form, files=files),
        api.client.post("/datasets/ok/upload", data=form, files=files),
        api.client.post("/datasets/ng/upload", data=form, files=files),
    ]
    for answer in refused:
        assert "truncated or damaged" in error_of(answer, 400, "undecodable_image")["error"]


def test_bytes_behind_a_jpeg_change_nothing(api: Api) -> None:
    data = encoded(PART, "JPEG", quality=90)
    whole, trailed = answer_of(api.infer(data)), answer_of(api.infer(data + b"\xff\xda\x00\x0c camera notes"))
    assert trailed["score"] == whole["score"]
