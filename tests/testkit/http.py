"""What the HTTP tests share: the application over a temporary models folder, a real server, images, and answers."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import cv2
import httpx
import numpy as np
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from backend.app import create_app
from backend.extractors.base import FeatureExtractor
from backend.extractors.loader import ExtractorLoader
from backend.settings import Settings
from backend.wiring import build_service

REPOSITORY = Path(__file__).resolve().parents[2]
ROLE, ROI, MM_PER_PX = "Inspection", "inspection-1", 0.2
PLATE_PX = 96
SMALL_INPUT_PX = 112
"""8 × 8 cells of 14 px: small enough for a fit of a few plates to take a fraction of a second."""

_ERROR_KEYS = {"error", "code", "request_id", "recipe_id"}


# --- images -----------------------------------------------------------------------------------------------------------


def plate(seed: int, hw: tuple[int, int] = (PLATE_PX, PLATE_PX)) -> NDArray[np.uint8]:
    """Return a good plate: the same brushed pattern on every one, and a grain that is its own. [H, W, 3] uint8."""
    height, width = hw
    rows, columns = np.mgrid[:height, :width]
    pattern = 120 + 25 * np.sin(columns / width * 9.0) + 15 * np.cos(rows / height * 7.0)
    grain = np.random.default_rng([seed, height, width]).standard_normal(hw)
    grain = cv2.GaussianBlur(grain, (0, 0), 1.0) * 12
    return np.repeat(np.clip(pattern + grain, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def with_defect(image: NDArray[np.uint8], xywh: tuple[int, int, int, int], strength: int = 30) -> NDArray[np.uint8]:
    """Return the image with a fine chequer in the box x, y, w, h: grey levels up and down by ``strength``.

    Its mean is that of the plate, so that only filters that look at the box itself answer to it.
    """
    x, y, w, h = xywh
    defective = image.astype(np.int16)
    ys, xs = np.mgrid[y : y + h, x : x + w]
    defective[y : y + h, x : x + w] += np.where((ys // 3 + xs // 3) % 2, strength, -strength)[:, :, None].astype(
        np.int16
    )
    return np.clip(defective, 0, 255).astype(np.uint8)


def encoded(image: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    """Return an image file's bytes."""
    ok, data = cv2.imencode(suffix, image)
    assert ok
    return data.tobytes()


def plates(seeds: Sequence[int], hw: tuple[int, int] = (PLATE_PX, PLATE_PX)) -> list[bytes]:
    """Return good plates as PNG files."""
    return [encoded(plate(seed, hw)) for seed in seeds]


# --- the application --------------------------------------------------------------------------------------------------


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
    return {
        name: json.dumps(value) if isinstance(value, dict) else value
        for name, value in form.items()
        if value is not None
    }


@contextmanager
def running_app(models: Path, *, loader: ExtractorLoader | None = None, **settings: Any) -> Iterator[Api]:
    """Start the application in this process, with the filter bank at a small input unless told otherwise."""
    with mock.patch.dict(os.environ, _without_settings(os.environ), clear=True):
        chosen = Settings(
            models_dir=models, **{"extractor": "filter-bank", "input_size": SMALL_INPUT_PX, "device": "cpu", **settings}
        )
    service = None if loader is None else build_service(chosen, extractor=loader)
    with TestClient(create_app(chosen, service), raise_server_exceptions=False) as client:
        yield Api(client, models)


def ready(extractor: FeatureExtractor) -> ExtractorLoader:
    """Return a loader that has only this extractor to give."""
    return ExtractorLoader(lambda: (extractor, None))


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.upper().startswith("BDI_")}


# --- a real server ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running ``uvicorn`` process."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    log: Path
    api: Api


@contextmanager
def running_server(
    folder: Path,
    *arguments: str,
    cwd: Path = REPOSITORY,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 90.0,
) -> Iterator[Server]:
    """Start ``uvicorn`` with these arguments on a free loopback port, and stop it with SIGTERM: it must end cleanly.

    The models lie in ``folder/models``, the log in ``folder/server.log``.
    """
    uvicorn = shutil.which("uvicorn", path=str(Path(sys.executable).parent))
    assert uvicorn is not None
    models, log = folder / "models", folder / "server.log"
    folder.mkdir(parents=True, exist_ok=True)
    variables = _without_settings(os.environ) | {
        "BDI_MODELS_DIR": str(models),
        "BDI_EXTRACTOR": "filter-bank",
        "BDI_INPUT_SIZE": str(SMALL_INPUT_PX),
        "BDI_DEVICE": "cpu",
        **(environment or {}),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [uvicorn, *arguments, "--host", "127.0.0.1", "--port", "0"],
            cwd=cwd,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        port = _port_of(process, log, time.monotonic() + timeout_s)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield Server(process, "127.0.0.1", port, log, Api(client, models))
        process.terminate()
        status = process.wait(30)
        assert status in (0, -signal.SIGTERM), f"uvicorn ended with {status}:\n{log.read_text()}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _port_of(process: subprocess.Popen[bytes], log: Path, deadline: float) -> int:
    while time.monotonic() < deadline:
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))
        if found:
            return int(found[1])
        assert process.poll() is None, f"uvicorn ended with {process.returncode}:\n{log.read_text(errors='replace')}"
        time.sleep(0.05)
    raise AssertionError(f"uvicorn did not start:\n{log.read_text(errors='replace')}")


# --- answers ----------------------------------------------------------------------------------------------------------


def strict_json(text: str) -> Any:
    """Return decoded JSON, as strict as .NET: NaN and Infinity are no numbers."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} in an answer: {text[:300]}")

    value = json.loads(text, parse_constant=refuse)
    _refuse_overflow(value)
    return value


def _refuse_overflow(value: Any) -> None:
    """1e999 is valid JSON, and infinite in every reader."""
    if isinstance(value, float):
        assert np.isfinite(value)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_overflow(inner)


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
    """Return every file below a folder with its bytes, and every folder (None)."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def images_of_roi(folder: Path) -> dict[str, bytes]:
    """Return the artefacts that a fit and a calibration make in a model's folder, with their bytes."""
    return {name: (folder / name).read_bytes() for name in ("memory.npz", "index.faiss", "calib.json")}
