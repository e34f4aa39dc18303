"""What the machine refuses is nobody's fault: 503 with a code that says what is short, whatever raised it."""

from __future__ import annotations

import errno
import sqlite3
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import pytest
from PIL import UnidentifiedImageError
from starlette.formparsers import SpooledTemporaryFile

from backend.imaging import image_codec
from backend.machine_errors import of_machine
from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import plates

REFUSALS = [
    (OSError(errno.ENOSPC, "No space left on device"), "storage_full"),
    (OSError(errno.EDQUOT, "Quota exceeded"), "storage_full"),
    (OSError(errno.EMFILE, "Too many open files"), "out_of_resources"),
    (OSError(errno.ENFILE, "Too many open files in system"), "out_of_resources"),
    (OSError(errno.EIO, "Input/output error"), "storage_failed"),
    (OSError(errno.EROFS, "Read-only file system"), "storage_failed"),
    (PermissionError(errno.EACCES, "Permission denied"), "storage_failed"),
    (MemoryError(), "out_of_resources"),
    (RuntimeError("can't start new thread"), "out_of_resources"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_resources"),
    (cv2.error("OpenCV(5) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate"), "out_of_resources"),
    (sqlite3.OperationalError("disk I/O error"), "storage_failed"),
]
IDS = [f"{type(error).__name__} {error}"[:50] for error, _ in REFUSALS]


@pytest.mark.parametrize(("error", "code"), REFUSALS, ids=IDS)
def test_each_refusal_of_the_machine_has_its_code(error: Exception, code: str) -> None:
    found = of_machine(error)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError(),
        UnidentifiedImageError("?"),
        ValueError("no"),
        ValueError("no such id: out of memory"),
    ],
)
def test_what_is_not_the_machines_fault_is_left_as_it_is(error: Exception) -> None:
    assert of_machine(error) is None


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_app(tmp_path_factory.mktemp("machine") / "models") as started:
        answer_of(started.fit(plates(range(3))))
        yield started


def calls(api: Api) -> list[Any]:
    part = plates([9])[0]
    query = {"role_id": ROLE, "roi_id": ROI}
    return [
        lambda: api.infer(part),
        lambda: api.client.get("/datasets/list", params=query),
        lambda: api.client.post("/datasets/ok/upload", data=query, files={"images": ("a.png", part)}),
        lambda: api.client.get("/state", params=query),
    ]


def test_what_a_client_writes_does_not_decide_whose_fault_it_is(api: Api) -> None:
    refused = api.client.post("/calibrate_ng", json={"role_id": 5, "note": "out of memory", "roi_id": "bad_alloc"})
    error_of(refused, 422, "invalid_input")


@pytest.mark.parametrize(("error", "code"), REFUSALS, ids=IDS)
def test_raised_anywhere_in_a_call_it_is_503_and_the_next_call_works(api: Api, error: Exception, code: str) -> None:
    refusing = mock.Mock(side_effect=error)
    with mock.patch("backend.artifacts.store.ArtefactStore.roi_folder", refusing):
        for call in calls(api):
            error_of(call(), 503, code)
    answer_of(api.infer(plates([9])[0]))


@pytest.mark.parametrize(("error", "code"), REFUSALS[:4], ids=IDS[:4])
@pytest.mark.parametrize("where", ["write", "rollover"])
def test_a_full_spool_is_not_the_callers_fault(api: Api, error: Exception, code: str, where: str) -> None:
    big = bytes(3_000_000)
    with mock.patch.object(SpooledTemporaryFile, where, mock.Mock(side_effect=error)):
        body = error_of(api.infer(big), 503, code)
    assert "log" in body["error"]


@pytest.mark.parametrize("error", [REFUSALS[7][0], REFUSALS[10][0]], ids=["Pillow", "OpenCV"])
def test_a_decoder_without_memory_does_not_call_the_image_damaged(api: Api, error: Exception) -> None:
    with mock.patch.object(image_codec.cv2, "imdecode", mock.Mock(side_effect=error)):
        error_of(api.infer(plates([9])[0]), 503, "out_of_resources")


def test_a_job_without_memory_says_so(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        with mock.patch("backend.services.fitting.Fitter.fit", mock.Mock(side_effect=MemoryError())):
            job = answer_of(api.fit(plates(range(2)), headers={"Prefer": "respond-async"}), 202)
            for _ in range(600):
                found = answer_of(api.client.get(job["status_url"]))
                if found["state"] not in ("queued", "running"):
                    break
                threading.Event().wait(0.05)
        assert found["error"]["code"] == "out_of_resources"
