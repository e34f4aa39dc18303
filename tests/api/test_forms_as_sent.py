"""Bodies as clients write them: file names in every form, preambles, byte order marks, and bodies of the wrong type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from backend.serving.file_names import MAX_NAME_CHARS, decoded_words, extended_name, safe_name
from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import JSON_ROUTES, ROI, ROLE
from tests.testkit.fakes import encoded, good_image

MODEL = {"role_id": ROLE, "roi_id": ROI}
INSPECTION = {**MODEL, "mm_per_px": "0.2"}
PNG = encoded(good_image(9, image_hw=(64, 64)))
BOUNDARY = b"a-boundary"
FORM_ROUTES = ("/infer", "/fit_ok", "/datasets/ok/upload", "/datasets/ng/upload")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("forms") / "models") as api:
        answer_of(api.fit([encoded(good_image(n, image_hw=(64, 64))) for n in range(2)]))
        yield api


def part(disposition: bytes, data: bytes) -> bytes:
    head = b"Content-Disposition: form-data; " + disposition
    return b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n"


def send(
    api: Api, path: str, *parts: bytes, before: bytes = b"", after: bytes = b"", end: bytes = b"--a-boundary--\r\n"
) -> httpx.Response:
    body = before + b"".join(parts) + end + after
    return api.client.post(
        path, content=body, headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    )


def texts(fields: dict[str, str]) -> list[bytes]:
    return [part(b'name="%s"' % name.encode(), value.encode()) for name, value in fields.items()]


NAMES = [
    (rb"filename*=utf-8''b%C3%BChler%20%E9%BB%91.png", "bühler_黑"),
    (rb"filename*=UTF-8'de'b%C3%BChler.png; filename=" + b'"other.png"', "bühler"),
    (b'filename="other.png"; ' + rb"filename*=ISO-8859-1''b%FChler.png", "bühler"),
    (rb"filename*=windows-1252''%80uro.png", "uro"),
    (b'filename="=?utf-8?B?YsO8aGxlcg==?=.png"', "bühler"),
    (b'filename="=?utf-8?Q?b=C3=BChler=2Epng?="', "bühler"),
    (b'filename="=?iso-8859-1?q?b=FChler?= =?utf-8?b?LnBuZw==?="', "bühler"),
    (b"filename==?utf-8?B?YsO8aGxlci5wbmc=?=", "bühler"),
    (b"filename*0*=utf-8''b%C3%BC; filename*1=hler.png", "bühler"),
    ('filename="bühler.png"'.encode(), "bühler"),
    ('filename="bühler.png"'.encode("latin-1"), "bühler"),
    (rb"filename*=utf-8''..%2F..%2Fetc%2Fpasswd.png", "passwd"),
    (rb"filename*=utf-8''C%3A%5Ctemp%5Ca%00b%0D%0A.png", "a_b"),
    (b'filename="=?utf-8?B?Li4vLi4vZXZpbC5wbmc=?="', "evil"),
    (rb"filename*=nonsense''a.png", "a"),
    (rb"filename*=zlib_codec''a.png", "a"),
    (b"filename*=a.png", "a"),
]


@pytest.mark.parametrize(("disposition", "stem"), NAMES, ids=[name.decode("latin-1") for name, _ in NAMES])
def test_a_file_has_the_name_that_its_client_gave_it(api: Api, disposition: bytes, stem: str) -> None:
    sent = send(api, "/datasets/ok/upload", *texts(MODEL), part(b"name=images; " + disposition, PNG))
    (saved,) = answer_of(sent)["saved"]
    assert saved.rsplit("-", 1)[0] == stem
    query = {**MODEL, "label": "ok"}
    assert api.client.get("/datasets/file", params={**query, "filename": saved}).content == PNG
    answer_of(api.client.request("DELETE", "/datasets/clear", params=query))


def test_an_error_names_a_file_by_its_decoded_name(api: Api) -> None:
    bad = part(rb"name=image; filename*=utf-8''b%C3%BChler.png", b"no image")
    body = error_of(send(api, "/infer", *texts(INSPECTION), bad), 400, "undecodable_image")
    assert "bühler.png" in body["error"]


def test_a_large_file_may_have_an_extended_name_only(api: Api) -> None:
    """Taken for a text, a part may hold 1 MB."""
    large = PNG + bytes(2_000_000)
    bad = part(rb"name=image; filename*=utf-8''a.png", large)
    assert send(api, "/infer", *texts(INSPECTION), bad).status_code in (200, 400)
    assert "1024KB" not in send(api, "/infer", *texts(INSPECTION), bad).text


def test_names_are_decoded_safely() -> None:
    assert extended_name(b"form-data; name=\"a; filename*=utf-8''x.png\"") is None
    assert decoded_words("=?utf-8?B?not base64?=") == "=?utf-8?B?not base64?="
    assert decoded_words("=?nobody?B?YQ==?=.png") == "a.png"
    assert safe_name("a/b\\c.png") == "c.png"
    assert safe_name("..") == safe_name("a/..") == safe_name("") == ""
    assert safe_name("a\x00b\u202ec\ud800.png") == "a_b_c_.png"
    assert len(safe_name("x" * 5000 + ".png")) == MAX_NAME_CHARS
    assert safe_name("x" * 5000 + ".png").endswith(".png")


@pytest.mark.parametrize("before", [b"", b"\r\n", b"This is a message in several parts.\r\n", b"--\r\n--a-bound\r\n"])
@pytest.mark.parametrize("after", [b"", b"\r\n", b"An epilogue.\r\n--a-boundary\r\n"])
def test_text_around_the_parts_is_no_part_of_the_form(api: Api, before: bytes, after: bytes) -> None:
    image = part(b"name=image; filename=a.png", PNG)
    answer = answer_of(send(api, "/infer", *texts(INSPECTION), image, before=before, after=after))
    assert answer["warnings"] == []


def test_a_form_without_its_boundary_or_its_end_is_refused(api: Api) -> None:
    parts = [*texts(INSPECTION), part(b"name=image; filename=a.png", PNG)]
    for path in FORM_ROUTES:
        for sent in (
            send(api, path, *parts, end=b""),
            send(api, path, end=b"nothing"),
            send(api, path, before=bytes(200_000)),
            api.client.post(path, content=b"".join(parts), headers={"Content-Type": "multipart/form-data"}),
        ):
            assert "multipart" in error_of(sent, 400, "bad_request")["error"]


def test_the_last_boundary_needs_no_line_break(api: Api) -> None:
    image = part(b"name=image; filename=a.png", PNG)
    answer_of(send(api, "/infer", *texts(INSPECTION), image, end=b"--a-boundary--"))


SHAPE = '{"kind":"rect","x":0,"y":0,"w":64,"h":64}'


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_before_a_text_is_skipped(api: Api, coding: str) -> None:
    shape = part(b"name=shape", SHAPE.encode(coding))
    fields = [part(b"name=" + name.encode(), value.encode(coding)) for name, value in INSPECTION.items()]
    answer = answer_of(send(api, "/infer", *fields, shape, part(b"name=image; filename=a.png", PNG)))
    assert answer["params"]["shape"]["w"] == 64
    assert (answer["role_id"], answer["roi_id"]) == (ROLE, ROI)


@pytest.mark.parametrize("disposition", [b"name=metas", b"name=metas; filename=meta.json"])
def test_a_byte_order_mark_before_metas_is_skipped(api: Api, disposition: bytes) -> None:
    meta = part(disposition, '{"mm_per_px":0.2}'.encode("utf-8-sig"))
    sent = send(api, "/datasets/ok/upload", *texts(MODEL), part(b"name=images; filename=a.png", PNG), meta)
    saved = answer_of(sent)["saved"][0]
    found = answer_of(api.client.get("/datasets/meta", params={**MODEL, "label": "ok", "filename": saved}))
    assert found["mm_per_px"] == 0.2


@pytest.mark.parametrize("path", ["/calibrate_ng", "/infer_dataset"])
@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_before_json_is_skipped(api: Api, path: str, coding: str) -> None:
    sent = json.dumps(MODEL).encode(coding)
    answer_of(api.client.post(path, content=sent, headers={"Content-Type": "application/json"}))


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("json", {"json": INSPECTION}),
    ("urlencoded", {"data": {**INSPECTION, "image": "a", "images": "a"}}),
    ("urlencoded without an image", {"data": INSPECTION}),
    ("raw", {"content": PNG, "headers": {"Content-Type": "image/png"}}),
    ("nothing said", {"content": PNG}),
    ("other multipart", {"content": PNG, "headers": {"Content-Type": "multipart/mixed; boundary=x"}}),
    ("no boundary", {"content": PNG, "headers": {"Content-Type": "multipart/form-data"}}),
    ("empty", {}),
]


@pytest.mark.parametrize("path", FORM_ROUTES)
@pytest.mark.parametrize("sent", [sent for _, sent in WRONG], ids=[name for name, _ in WRONG])
def test_what_is_no_form_is_refused_with_what_it_should_be(api: Api, path: str, sent: dict[str, Any]) -> None:
    response = api.client.post(path, **sent)
    assert response.status_code in (400, 422)
    assert "multipart" in response.json()["error"]


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize(
    "sent",
    [
        {"files": {"a": ("a.png", PNG)}, "data": MODEL},
        {"data": MODEL},
        {"content": json.dumps(MODEL)},
        {"content": json.dumps(MODEL), "headers": {"Content-Type": "text/plain"}},
    ],
    ids=["multipart", "urlencoded", "nothing said", "text"],
)
def test_what_is_no_json_is_refused_with_what_it_should_be(api: Api, path: str, sent: dict[str, Any]) -> None:
    body = error_of(api.client.post(path, **sent), 422, "invalid_input")
    assert "application/json" in body["error"]


def test_a_form_without_files_may_be_urlencoded(api: Api) -> None:
    answer_of(api.client.post("/fit_ok", data={**INSPECTION, "use_dataset": "true"}))
