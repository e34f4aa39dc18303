"""A client that speaks as .NET's HttpClient does, over real sockets, and reads as strictly as System.Text.Json does."""

from __future__ import annotations

import base64
import json
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from backend.demo.client import Answer, with_query
from backend.demo.client import Client as Connection
from tests.testkit.fakes import encoded, good_image

ROLE, ROI = "Inspection", "inspection-1"
JSON_ROUTES = (
    "/calibrate_ng",
    "/calibrate_dataset",
    "/infer_dataset",
    "/refit",
    "/recipes/copy",
    "/versions/activate",
    "/versions/compare",
)
"""All calls that take a JSON body."""

FINAL_STATES = {"done", "failed", "cancelled", "lost"}
DEADLINE_S = 120.0


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


@dataclass(frozen=True, kw_only=True)
class Reply(Answer):
    """An answer, read as strictly as System.Text.Json reads it."""

    @property
    def json(self) -> Any:
        if self.headers.get_content_type() != "application/json":
            raise ValueError(f"no JSON: {self.status} {self.body[:300]!r}")
        return strict_json(self.body.decode("utf-8"))


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
        with Connection(self.port, timeout_s=DEADLINE_S) as connection:
            return Reply(**vars(connection.ask(method, path, body, {**sent, **(headers or {})})))

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, **query: object) -> Reply:
        return self.send("GET", with_query(path, query), headers=headers)

    def about(self, path: str, *, headers: Mapping[str, str] | None = None, **query: object) -> Reply:
        """GET something of the ROI."""
        return self.get(path, headers=headers, **{**self.roi, **query})

    def delete(self, path: str, **query: object) -> Reply:
        """DELETE something of the ROI."""
        return self.send("DELETE", with_query(path, {**self.roi, **query}))

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


def _dotnet_token(filename: str) -> str:
    if not filename.isascii():
        return f'"=?utf-8?B?{base64.b64encode(filename.encode()).decode()}?="'
    return filename if all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in filename) else f'"{filename}"'


def strict_json(text: str) -> Any:
    """Return decoded JSON.

    Raises:
        ValueError: For what .NET does not read: NaN, Infinity, a number beyond every double, a name that comes twice.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_without_repeats)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a name stands twice in one object: {[name for name, _ in pairs]}")
    return found
