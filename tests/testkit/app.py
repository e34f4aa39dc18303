"""The application in this process behind a client, and its answers, checked as the contract says."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from backend.app import create_app
from backend.demo.service_process import environment_with
from backend.extractors.base import FeatureExtractor
from backend.extractors.loader import ExtractorLoader
from backend.history.database import FILE_NAME
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.client import ROI, ROLE, strict_json

REPOSITORY = Path(__file__).resolve().parents[2]
MM_PER_PX = 0.2
SMALL_INPUT_PX = 64
"""8 × 8 cells of 8 px: small enough for a fit of a few plates to take a fraction of a second."""

_ERROR_KEYS = {"error", "code", "request_id", "recipe_id"}


@dataclass(frozen=True)
class Api:
    """The service behind a client, in the words of the contract; each call is one ROI's unless it names another."""

    client: httpx.Client
    models: Path

    def fit(
        self, images: Sequence[bytes], *, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        files = [("images", (f"good-{n}.png", data, "image/png")) for n, data in enumerate(images)]
        return self.client.post("/fit_ok", data=_form(fields), files=files, headers=headers)

    def infer(self, image: bytes, *, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        files = {"image": ("part.png", image, "image/png")}
        return self.client.post("/infer", data=_form(fields), files=files, headers=headers)

    def calibrate(self, *, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"role_id": ROLE, "roi_id": ROI, "mm_per_px": MM_PER_PX, **fields}
        return self.client.post("/calibrate_ng", json=body, headers=headers)

    def roi_folder(self, roi_id: str = ROI) -> Path:
        return self.models / ROLE / roi_id


def _form(fields: Mapping[str, Any]) -> dict[str, Any]:
    form = {"role_id": ROLE, "roi_id": ROI, "mm_per_px": str(MM_PER_PX), **fields}
    texts = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in form.items()}
    return {name: value for name, value in texts.items() if value is not None}


@contextmanager
def running_app(models: Path, *, loader: ExtractorLoader | None = None, **settings: Any) -> Iterator[Api]:
    """Start the application in this process, with the filter bank at a small input unless told otherwise."""
    with mock.patch.dict(os.environ, environment_with({}), clear=True):
        chosen = Settings(
            models_dir=models, **{"extractor": "filter-bank", "input_size": SMALL_INPUT_PX, "device": "cpu", **settings}
        )
    service = None if loader is None else build_service(chosen, extractor=loader)
    with TestClient(create_app(chosen, service), raise_server_exceptions=False) as client:
        yield Api(client, models)


def ready(extractor: FeatureExtractor) -> ExtractorLoader:
    """Return a loader that has only this extractor to give."""
    return ExtractorLoader(lambda: (extractor, None))


def answer_of(response: httpx.Response, status: int = 200) -> dict[str, Any]:
    """Return the body of an answer of this status."""
    assert response.status_code == status, response.text
    body = strict_json(response.text)
    assert isinstance(body, dict)
    assert body["request_id"] == response.headers["X-Request-Id"]
    return body


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the body of an error after checking that it is the contract's: sentence, code, request and recipe id."""
    body = answer_of(response, status)
    assert body["code"] == code, body
    assert set(body) - {"details"} == _ERROR_KEYS
    assert isinstance(body.get("details", {}), dict)
    sentence = body["error"]
    assert isinstance(sentence, str)
    assert len(sentence) >= 20, f"nobody can act on {sentence!r}"
    assert sentence.endswith("."), f"not a sentence: {sentence!r}"
    for internal in ("Traceback", "<class", "site-packages", "/backend/", str(REPOSITORY)):
        assert internal not in response.text
    return body


def heatmap_of(answer: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return the heat map of an answer, [H, W] uint8, after checking that it is an 8-bit grey PNG."""
    data = base64.b64decode(answer["heatmap_png_base64"], validate=True)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def files_below(folder: Path) -> dict[str, bytes | None]:
    """Return every file below a folder with its bytes, and every folder (None).

    Without the history, which a thread of its own writes behind the calls.
    """
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(FILE_NAME)
    }
