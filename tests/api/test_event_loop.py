"""No body keeps the event loop from other requests: large texts are refused, and what is taken is parsed in turns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import JSON_ROUTES, ROI, ROLE
from tests.testkit.fakes import plates

FORM = {"role_id": ROLE, "roi_id": ROI}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("loop") / "models") as started:
        answer_of(started.fit(plates(range(3))))
        yield started


def padded(size: int) -> bytes:
    body = json.dumps({**FORM, "unknown": "x"}).encode()
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize("chunked", [False, True])
def test_json_of_more_than_a_megabyte_is_refused(api: Api, path: str, chunked: bool) -> None:
    body: Any = padded(1_000_001)
    headers = {"Content-Type": "application/json"}
    response = api.client.post(
        path, content=iter([body[:500_000], body[500_000:]]) if chunked else body, headers=headers
    )
    error_of(response, 413, "too_large")
    assert api.client.post(path, content=padded(999_999), headers=headers).status_code != 413


def test_a_form_without_files_of_more_than_a_megabyte_is_refused(api: Api) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = api.client.post("/infer", content=b"role_id=" + b"%41" * 400_000, headers=headers)
    error_of(response, 413, "too_large")


@pytest.mark.parametrize("as_file", [False, True])
def test_metadata_of_more_than_64_kb_are_refused(api: Api, as_file: bool) -> None:
    def upload(size: int) -> Any:
        meta = json.dumps({"note": "x" * (size - 12)})
        part: Any = ("meta.json", meta) if as_file else (None, meta)
        files = [("images", ("a.png", plates([5])[0])), ("metas", part)]
        return api.client.post("/datasets/ok/upload", data=FORM, files=files)

    error_of(upload(65_537), 413, "too_large")
    answer_of(upload(65_536))


HOSTILE = {
    "unknown keys": json.dumps({**FORM, **{f"role_{n}": n for n in range(45_000)}}),
    "wrong scores": json.dumps({**FORM, "ok_scores": ["x"] * 99_000}),
    "repeated keys": "{" + ",".join(f'"roi_id":{n}' for n in range(60_000)) + "}",
    "nested": '{"roi_id":' + "[" * 400_000 + "]" * 400_000 + "}",
    "nested unknown keys": json.dumps({**FORM, "ok_scores": [{"a": n} for n in range(60_000)]}),
    "labels": json.dumps({**FORM, "labels": ["x"] * 190_000}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", ["/calibrate_ng", "/infer_dataset", "/refit"])
def test_a_hostile_text_is_answered_in_short(api: Api, path: str, name: str) -> None:
    body = HOSTILE[name].encode()
    assert len(body) <= 1_000_000
    response = api.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 409, 422)
    assert len(response.content) < 20_000


def test_a_json_body_is_parsed_on_another_thread(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from backend.serving import multipart

    seen: list[bool] = []

    def noting(data: bytes) -> Any:
        try:
            asyncio.get_running_loop()
            seen.append(True)
        except RuntimeError:
            seen.append(False)
        return json.loads(data), ()

    monkeypatch.setattr(multipart, "json_noting_repeats", noting)
    api.calibrate(threshold=0.5)
    assert seen == [False]
