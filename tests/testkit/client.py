"""A client that speaks as .NET's HttpClient does, and servers on real sockets for it to speak to."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import uvicorn

from backend.app import create_app
from backend.extractors.base import FeatureExtractor
from backend.extractors.loader import ExtractorLoader
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.fakes import encoded, good_image

ROLE, ROI = "Inspection", "inspection-1"
FINAL_STATES = {"done", "failed", "cancelled", "lost"}
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Part:
    """One part of a multipart form, written as .NET writes it."""

    name: str
    data: bytes
    filename: str | None = None
    content_type: str | None = "text/plain; charset=utf-8"

    def to_bytes(self) -> bytes:
        lines = [] if self.content_type is None else [f"Content-Type: {self.content_type}"]
        disposition = f"Content-Disposition: form-data; name={self.name}"
        if self.filename is not None:
            disposition += (
                f"; filename={_dotnet_token(self.filename)}; filename*=utf-8''{quote(self.filename, safe='')}"
            )
        lines.append(disposition)
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + self.data


def text(name: str, value: object) -> Part:
    """Return what ``form.Add(new StringContent(value), name)`` sends."""
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return Part(name, shown.encode())


def image(
    data: bytes, filename: str = "roi.png", *, name: str = "images", content_type: str | None = "image/png"
) -> Part:
    """Return what ``form.Add(new ByteArrayContent(data), name, filename)`` sends."""
    return Part(name, data, filename, content_type)


def meta(value: object) -> Part:
    """Return a ``metas`` part: a StringContent of type application/json, which .NET sends without a file name."""
    body = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Part("metas", body.encode(), None, "application/json; charset=utf-8")


def dotnet_form(parts: Iterable[Part], boundary: str | None = None) -> tuple[bytes, str]:
    """Return a multipart body as .NET's MultipartFormDataContent writes it, and its Content-Type."""
    boundary = boundary or str(uuid.uuid4())
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + part.to_bytes() + b"\r\n" for part in parts)
    return body + f"--{boundary}--\r\n".encode(), f'multipart/form-data; boundary="{boundary}"'


def fields(values: Mapping[str, object]) -> list[Part]:
    """Return plain form fields, in order."""
    return [text(name, value) for name, value in values.items()]


def png(seed: int, *, edge: int = 64) -> bytes:
    """Return a good image's file."""
    return encoded(good_image(seed, image_hw=(edge, edge)))


@dataclass(frozen=True)
class Reply:
    """An answer, read as strictly as System.Text.Json reads it."""

    status: int
    headers: Message
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        assert self.headers.get_content_type() == "application/json", (self.status, self.body[:300])
        return json.loads(self.body.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_without_repeats)

    def ok(self, status: int = 200) -> Any:
        """Return the JSON of an answer that must have this status."""
        assert self.status == status, (self.status, self.body[:600])
        return self.json


@dataclass(frozen=True)
class Client:
    """Talks about one ROI to a server over real sockets, one connection a call; safe to share between threads."""

    host: str
    port: int
    models_dir: Path
    recipe: str | None = None
    role_id: str = ROLE
    roi_id: str = ROI

    def at(self, roi_id: str | None = None, **changes: Any) -> Client:
        """Return a client of another ROI, role or recipe."""
        return replace(self, roi_id=roi_id or self.roi_id, **changes)

    @property
    def roi(self) -> dict[str, str]:
        return {"role_id": self.role_id, "roi_id": self.roi_id}

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        sent = {} if self.recipe is None else {"X-Recipe-Id": self.recipe}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, **query: object) -> Reply:
        return self.send("GET", path + _query(query), headers=headers)

    def about(self, path: str, *, headers: Mapping[str, str] | None = None, **query: object) -> Reply:
        """GET something of the ROI."""
        return self.get(path, headers=headers, **{**self.roi, **query})

    def delete(self, path: str, **query: object) -> Reply:
        """DELETE something of the ROI."""
        return self.send("DELETE", path + _query({**self.roi, **query}))

    def post(self, path: str, value: object, *, headers: Mapping[str, str] | None = None) -> Reply:
        content = {"Content-Type": "application/json; charset=utf-8"}
        return self.send("POST", path, json.dumps(value, ensure_ascii=False).encode(), {**content, **(headers or {})})

    def form(self, path: str, parts: Iterable[Part], *, headers: Mapping[str, str] | None = None) -> Reply:
        body, content_type = dotnet_form(parts)
        return self.send("POST", path, body, {"Content-Type": content_type, **(headers or {})})

    # The calls of the published client, in short.

    def upload(
        self,
        label: str,
        images: Sequence[bytes],
        metas: Sequence[object] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> Reply:
        names = names or [f"sample {n}.png" for n in range(len(images))]
        parts = [image(data, name) for data, name in zip(images, names, strict=True)]
        parts += [meta(value) for value in metas or ()]
        return self.form(f"/datasets/{label}/upload", [*fields(self.roi), *parts])

    def fit(self, images: Sequence[bytes] = (), *, headers: Mapping[str, str] | None = None, **others: object) -> Reply:
        parts = fields({**self.roi, "mm_per_px": 0.2, **others})
        return self.form("/fit_ok", [*parts, *(image(data) for data in images)], headers=headers)

    def infer(self, data: bytes, *, headers: Mapping[str, str] | None = None, **others: object) -> Reply:
        parts = fields({**self.roi, "mm_per_px": 0.2, **others})
        return self.form("/infer", [*parts, image(data, name="image")], headers=headers)

    def calibrate(self, **others: object) -> Reply:
        return self.post("/calibrate_ng", {**self.roi, "mm_per_px": 0.2, **others})

    def dataset(self, path: str, *, headers: Mapping[str, str] | None = None, **others: object) -> Reply:
        """POST /infer_dataset or /calibrate_dataset."""
        return self.post(path, {**self.roi, "default_mm_per_px": None, **others}, headers=headers)

    def files(self, label: str) -> list[str]:
        return list(self.about("/datasets/list").ok()["classes"][label]["files"])

    def wait_for_job(self, job_id: str, *, until: Iterable[str] = FINAL_STATES) -> dict[str, Any]:
        wanted, deadline = set(until), time.monotonic() + DEADLINE_S
        while True:
            job: dict[str, Any] = self.get(f"/jobs/{job_id}").ok()
            if job["state"] in wanted:
                return job
            assert time.monotonic() < deadline, f"job {job_id} did not come to {wanted}: {job}"
            assert job["state"] not in FINAL_STATES, f"job {job_id} ended otherwise: {job}"
            time.sleep(0.02)


@contextmanager
def running(settings: Settings, extractor: FeatureExtractor | None = None) -> Iterator[Client]:
    """Serve an application on a real socket of this process, with the extractor given or the settings' own."""
    service = None
    if extractor is not None:
        service = build_service(settings, extractor=ExtractorLoader(lambda: (extractor, None)))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(settings, service), log_level="error", timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    thread.start()
    try:
        _wait_until(lambda: server.started or not thread.is_alive())
        assert thread.is_alive(), "the server did not start"
        yield Client("127.0.0.1", listener.getsockname()[1], settings.models_dir)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


class Process:
    """The real service in a process of its own, on the filter bank; to be stopped, killed and started again."""

    def __init__(self, models_dir: Path, **settings: object) -> None:
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("BDI_")}
        chosen = {"models_dir": models_dir, "extractor": "filter-bank", "input_size": 112, **settings}
        self._environment.update({f"BDI_{name.upper()}": str(value) for name, value in chosen.items()})
        self._process: subprocess.Popen[bytes] | None = None
        self.log = models_dir.with_suffix(".log")
        self.client = Client("127.0.0.1", 0, models_dir)

    def start(self) -> Client:
        assert self._process is None or self._process.poll() is not None, "it runs already"
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        environment = {**self._environment, "BDI_BACKEND_PORT": str(port)}
        command = [sys.executable, "-c", "from backend.cli import main; main(['serve'])"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=Path(__file__).parents[2]
            )
        self.client = replace(self.client, port=port)
        _wait_until(lambda: self._answers("ok"))
        return self.client

    def stop(self) -> None:
        """End the process as a service manager does."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(DEADLINE_S)

    def kill(self) -> None:
        """End the process as a power cut does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _answers(self, status: str) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended with {self._process.returncode}"
        try:
            return bool(self.client.get("/health").json["status"] == status)
        except OSError:
            return False


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def _dotnet_token(filename: str) -> str:
    if not filename.isascii():
        return f'"=?utf-8?B?{base64.b64encode(filename.encode()).decode()}?="'
    return filename if all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in filename) else f'"{filename}"'


def _query(query: Mapping[str, object]) -> str:
    return "?" + urlencode({name: str(value) for name, value in query.items()}, quote_via=quote) if query else ""


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), "a name stands twice in one object"
    return found
