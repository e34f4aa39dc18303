"""Who may call: keys, roles, pages of other web sites, and what nobody learns."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from backend.app import ROUTERS, create_app
from backend.services import audit
from backend.serving import access
from backend.serving.access import DOCUMENTATION, access_needed, access_of
from backend.serving.hosts import is_loopback
from tests.testkit.app import REPOSITORY, Api, answer_of, error_of, running_app
from tests.testkit.client import strict_json
from tests.testkit.fakes import plates

ADMIN, INSPECT = "admin-0123456789abcdef", "inspect-0123456789abcdef"
KEYS = f"admin:{ADMIN},inspect:{INSPECT}"
ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
OPERATIONS = {(method, route.path): access_of(route) for route in ROUTES for method in route.methods or ()}

ARCHIVES = {("GET", "/backup")}
KEPT_IMAGES = {("GET", "/audit/{entry_id}/{view}"), ("GET", "/audit/{entry_id}/regions")}

# Whatever writes, deletes or stops something, and the images of single parts. Kept here a second time: a marker that is
# changed must be meant.
ADMINS = {
    ("POST", "/fit_ok"),
    ("POST", "/refit"),
    ("POST", "/calibrate_ng"),
    ("POST", "/calibrate_dataset"),
    ("POST", "/versions/activate"),
    ("POST", "/datasets/ok/upload"),
    ("POST", "/datasets/ng/upload"),
    ("POST", "/datasets/exclude"),
    ("DELETE", "/datasets/file"),
    ("DELETE", "/datasets/clear"),
    ("POST", "/recipes/copy"),
    ("DELETE", "/recipes"),
    ("DELETE", "/jobs/{job_id}"),
    ("POST", "/verify"),
    ("POST", "/restore"),
    *ARCHIVES,
    *KEPT_IMAGES,
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("keys") / "models", api_keys=KEYS, cors_origins="http://panel") as started:
        yield started


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_route_of_the_application_declares_its_access() -> None:
    declared = {(method, path) for method, path in OPERATIONS}
    documented = {
        (method.upper(), path) for path, methods in create_app().openapi()["paths"].items() for method in methods
    }
    assert documented == declared, "a route that the table does not know"
    for route in ROUTES:
        assert (getattr(route, "openapi_extra", None) or {}).get("x-role"), f"{route.path} has no marker"


def test_admin_is_needed_for_what_writes_and_for_nothing_else() -> None:
    assert {operation for operation, needed in OPERATIONS.items() if needed == "open"} == {("GET", "/health")}
    known = ADMINS & OPERATIONS.keys()
    assert known == ADMINS
    for (method, path), needed in OPERATIONS.items():
        if method == "DELETE" or (method, path) in ADMINS:
            assert needed == "admin", path
        if method == "GET" and path != "/health" and (method, path) not in KEPT_IMAGES | ARCHIVES:
            assert needed == "inspect", path
    assert OPERATIONS["POST", "/infer"] == OPERATIONS["POST", "/infer_dataset"] == "inspect"


def test_a_route_without_a_marker_needs_admin() -> None:
    route = Route("/new", lambda request: None, methods=["POST"])
    scope = {"type": "http", "method": "POST", "path": "/new", "headers": []}
    assert access_needed([route], scope) == "admin"


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("DELETE", "/jobs/0f3c", "admin"),
        ("GET", "/jobs/0f3c", "inspect"),
        ("POST", "/fit_ok", "admin"),
        ("POST", "/fit_ok\n", "admin"),  # the router's pattern takes it for the same address
        ("GET", "/nothing", "inspect"),
        ("GET", "/health", "open"),
        ("POST", "/health", "inspect"),
    ],
)
def test_the_table_sees_an_address_as_the_router_does(method: str, path: str, needed: str) -> None:
    assert access_needed(ROUTES, {"type": "http", "method": method, "path": path, "headers": []}) == needed
    behind_proxy = {"type": "http", "method": method, "path": f"/roi{path}", "root_path": "/roi", "headers": []}
    assert access_needed(ROUTES, behind_proxy) == needed


# --- every operation, over HTTP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
def test_every_operation_keeps_out_whom_it_must(api: Api, operation: tuple[str, str]) -> None:
    method, path = operation
    needed, address = OPERATIONS[operation], path.replace("{job_id}", "0" * 32)

    def status(headers: dict[str, str]) -> int:
        return api.client.request(method, address, headers=headers).status_code

    anybody, unknown = status({}), status({"X-API-Key": "x" * 20})
    if needed == "open":
        assert (anybody, unknown) == (200, 200)
    else:
        assert (anybody, unknown) == (401, 401)
    assert (status({"X-API-Key": INSPECT}) == 403) == (needed == "admin")
    assert (status(bearer(INSPECT)) == 403) == (needed == "admin")
    assert status({"X-API-Key": ADMIN}) not in (401, 403)
    assert status(bearer(ADMIN)) not in (401, 403)


def test_a_refusal_is_the_one_error_body_and_says_what_to_do(api: Api) -> None:
    no_key = api.client.get("/recipes")
    assert "X-API-Key" in error_of(no_key, 401, "unauthorized")["error"]
    assert no_key.headers["WWW-Authenticate"] == "Bearer"
    unknown = api.client.get("/recipes", headers=bearer("who-is-this-0123456"))
    assert "not known" in error_of(unknown, 401, "unauthorized")["error"]
    assert "admin" in error_of(api.fit([], headers={"X-API-Key": INSPECT}), 403, "forbidden")["error"]


@pytest.mark.parametrize("header", [{"Authorization": "bearer  " + INSPECT}, {"authorization": "BEARER " + INSPECT}])
def test_the_scheme_of_a_bearer_is_written_as_one_likes(api: Api, header: dict[str, str]) -> None:
    assert api.client.get("/recipes", headers=header).status_code == 200


@pytest.mark.parametrize("value", ["", "Bearer", "Basic " + base64.b64encode(f"x:{ADMIN}".encode()).decode(), ADMIN])
def test_other_forms_of_authorization_are_no_key(api: Api, value: str) -> None:
    assert api.client.get("/recipes", headers={"Authorization": value}).status_code == 401


def test_a_body_is_not_read_before_the_key_is_known(api: Api) -> None:
    read = []

    def body() -> Iterator[bytes]:
        read.append(1)
        yield b"x"

    async def never_called() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/fit_ok", "raw_path": b"/fit_ok", "query_string": b"",
        "headers": [(b"content-length", b"1000000000000")], "server": ("127.0.0.1", 8000), "client": None,
        "scheme": "http", "root_path": "", "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip
    assert api.client.portal is not None  # type: ignore[attr-defined]
    api.client.portal.call(api.client.app, scope, never_called, send)  # type: ignore[attr-defined]
    assert sent[0]["status"] == 401


def test_health_tells_a_stranger_that_something_is_wrong_and_not_what(tmp_path: Path) -> None:
    with running_app(tmp_path, api_keys=KEYS, extractor="dinov2", weights=tmp_path / "line-7.safetensors") as api:
        while api.client.get("/health").json()["status"] == "starting":
            pass
        stranger = answer_of(api.client.get("/health"))
        known = answer_of(api.client.get("/health", headers=bearer(INSPECT)))
    assert (stranger["status"], known["status"]) == ("degraded", "degraded")
    assert "BDI_WEIGHTS" in known["reason"]
    assert stranger["reason"] == "Ask with an API key for the reason."


def test_refusals_are_counted(api: Api) -> None:
    def count() -> float:
        text = api.client.get("/metrics", headers=bearer(INSPECT)).text
        found = re.search(r'bdi_errors_total\{code="unauthorized"\} (\S+)', text)
        return float(found[1]) if found else 0.0

    before = count()
    api.client.get("/recipes")
    assert count() == before + 1


def test_a_preflight_needs_no_key_and_a_refusal_can_be_read_by_the_page(api: Api) -> None:
    ask = {"Origin": "http://panel", "Access-Control-Request-Method": "POST"}
    preflight = api.client.options("/infer", headers={**ask, "Access-Control-Request-Headers": "x-api-key"})
    assert preflight.status_code == 200
    assert "x-api-key" in preflight.headers["Access-Control-Allow-Headers"].lower()
    refused = api.client.get("/recipes", headers={"Origin": "http://panel"})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, "http://panel")
    assert api.client.options("/infer").status_code == 401  # a probe of the published client: anything but 404


def test_an_address_that_leads_nowhere_tells_a_stranger_nothing(api: Api) -> None:
    error_of(api.client.get("/nothing"), 401, "unauthorized")
    error_of(api.client.get("/nothing", headers=bearer(INSPECT)), 404, "not_found")


# --- what the roles leave to each other -------------------------------------------------------------------------------


def test_the_jobs_of_an_inspect_key_leave_those_of_an_admin_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.services.jobs.KEPT_JOBS", 2)
    body = {"role_id": "Inspection", "roi_id": "inspection-1"}
    with running_app(tmp_path / "models", api_keys=KEYS, concurrent_jobs=1) as api:

        def job_of(secret: str, path: str, **request: Any) -> str:
            headers = {"X-API-Key": secret, "Prefer": "respond-async"}
            job_id: str = answer_of(api.client.post(path, headers=headers, **request), 202)["job_id"]
            while answer_of(api.client.get(f"/jobs/{job_id}", headers=bearer(secret)))["state"] in (
                "queued",
                "running",
            ):
                pass
            return job_id

        files = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(plates([1, 2]))]
        fit = job_of(ADMIN, "/fit_ok", data={**body, "mm_per_px": "0.2"}, files=files)
        others = [job_of(INSPECT, "/infer_dataset", json=body) for _ in range(8)]
        assert answer_of(api.client.get(f"/jobs/{fit}", headers=bearer(ADMIN)))["state"] == "done"
        assert api.client.get(f"/jobs/{others[0]}", headers=bearer(INSPECT)).status_code == 404
        assert answer_of(api.client.get(f"/jobs/{others[-1]}", headers=bearer(INSPECT)))["kind"] == "infer_dataset"


# --- the documentation, in a browser ----------------------------------------------------------------------------------


def test_a_browser_asks_for_the_key_as_a_password_and_then_shows_the_documentation(api: Api) -> None:
    stranger = api.client.get("/docs")
    assert (stranger.status_code, stranger.headers["WWW-Authenticate"]) == (401, 'Basic realm="ROI inspector"')
    page = api.client.get("/docs", auth=("anyone", INSPECT))
    assert page.status_code == 200
    for address in ["/openapi.json", "/redoc", *re.findall(r'(?:src|href)="(/[^"]+)"', page.text)]:
        assert DOCUMENTATION.fullmatch(address)
        assert api.client.get(address).status_code == 401
        assert api.client.get(address, auth=("anyone", INSPECT)).status_code == 200, address
    assert api.client.get("/docs", auth=("anyone", "wrong")).status_code == 401
    assert api.client.get("/docs", headers={b"Authorization": b"Basic \xe9"}).status_code == 401


def test_a_password_that_a_browser_knows_opens_nothing_but_the_documentation(api: Api) -> None:
    """It would send it along with a form of any page that is open in it."""
    assert api.client.get("/recipes", auth=("anyone", ADMIN)).status_code == 401
    assert api.client.get("/documents", auth=("anyone", ADMIN)).status_code in (401, 404)


def test_the_document_says_how_a_key_is_sent_and_which_role_a_call_needs() -> None:
    document = create_app().openapi()
    schemes = document["components"]["securitySchemes"]
    assert schemes["ApiKey"]["name"] == "X-API-Key"
    assert schemes["Bearer"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["x-role"] == OPERATIONS[method.upper(), path]
            expected = [] if path == "/health" else [{"ApiKey": []}, {"Bearer": []}]
            assert operation["security"] == expected
            assert {"401", "403", "408"} <= set(operation["responses"])


# --- pages of other web sites -----------------------------------------------------------------------------------------


def test_a_page_of_another_web_site_cannot_have_the_browser_send_a_form(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        for origin in ("http://evil.example", "null", "http://testserver.evil.example", "testserver"):
            error_of(api.fit(plates([1, 2]), headers={"Origin": origin}), 403, "forbidden")
        assert not (tmp_path / "models" / "Inspection").exists()
        answer_of(api.fit(plates([1, 2]), headers={"Origin": "http://testserver"}))  # the page at /docs
        answer_of(api.fit(plates([3])))  # a program
    with running_app(tmp_path / "models", cors_origins="http://panel") as api:
        answer_of(api.infer(plates([1])[0], headers={"Origin": "http://panel"}))


# --- what nobody learns -----------------------------------------------------------------------------------------------


def test_headers_keep_browsers_from_guessing_framing_and_keeping(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        script = re.search(r'src="([^"]+\.js)"', api.client.get("/docs").text)
        assert script is not None
        for path in ("/health", "/nothing", "/docs", "/openapi.json", script[1]):
            headers = api.client.get(path).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["X-Frame-Options"] == "DENY"
            assert "server" not in headers
            assert headers.get("Cache-Control") == (None if path == script[1] else "no-store")
        assert api.client.get("/health").headers["Content-Security-Policy"].startswith("default-src 'none'")
        page = api.client.get("/docs").headers["Content-Security-Policy"]
        assert "default-src 'self'" in page
        assert "http" not in page, "nothing of the documentation comes from elsewhere"


def test_no_answer_of_any_error_tells_of_paths_libraries_or_code(tmp_path: Path, monkeypatch: Any) -> None:
    with running_app(tmp_path / "models", max_images=3, audit=True) as api:
        answer_of(api.fit(plates([1, 2, 3])))
        answers = [
            api.infer(b"no image"),
            api.infer(plates([1])[0], roi_id="unfitted"),
            api.infer(plates([1])[0], mm_per_px=0.9),
            api.infer(plates([1])[0], shape="{"),
            api.infer(plates([1])[0], roi_id="../../etc/passwd"),
            api.fit(plates([1, 2, 3, 4])),
            api.client.post("/calibrate_ng", content=b"{", headers={"Content-Type": "application/json"}),
            api.client.post("/fit_ok", content=b"x", headers={"Content-Type": "multipart/form-data"}),
            api.client.get("/datasets/file?role_id=a&roi_id=b&label=ok&filename=..%2F..%2Fx"),
            api.client.get("/static-offline-docs/../../app.py"),
            api.client.get("/jobs/x"),
            api.client.get("/nothing"),
            api.client.delete("/health"),
        ]
        (api.roi_folder() / "memory.npz").write_bytes(b"damaged")
        answers.append(api.infer(plates([1])[0]))
        answer_of(api.fit(plates([1, 2, 3]), mode="replace"))

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"{tmp_path} {REPOSITORY}/backend/app.py numpy 2.4.6")

        monkeypatch.setattr(audit.Audit, "find", fail)
        answers.append(api.client.get("/audit"))
    assert {400, 404, 405, 409, 413, 422, 500} <= {answer.status_code for answer in answers}
    for answer in answers:
        sent = answer.text + json.dumps(dict(answer.headers))
        strict_json(answer.text)
        for inside in (str(tmp_path), str(REPOSITORY), ".py", "Traceback", "site-packages"):
            assert inside not in sent, sent
        assert not re.search(r"numpy|uvicorn|starlette|fastapi|pydantic|opencv|cv2|torch|sqlite|PIL", sent, re.I), sent


# --- a service that everybody can reach -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("/run/roi.sock", True),
        ("0.0.0.0", False), ("::", False), ("192.168.0.7", False), ("", False), ("line-pc", False),
    ],
)  # fmt: skip
def test_a_loopback_address_is_known_from_one_that_others_reach(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


def test_the_first_request_from_another_machine_warns_once_where_no_key_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, access.__name__)
    for keys, expected in ((None, 1), (KEYS, 0)):
        caplog.clear()
        with running_app(tmp_path / "models", api_keys=keys) as api:
            for address in ("http://127.0.0.1:8000", "http://192.168.0.7:8000", "http://192.168.0.7:8000"):
                api.client.get(f"{address}/health")
        warned = [record for record in caplog.records if "BDI_API_KEYS" in record.getMessage()]
        assert len(warned) == expected
        assert all("fit, delete and read images" in record.getMessage() for record in warned)


def test_keys_stand_in_no_representation_of_the_settings(api: Api) -> None:
    settings = api.client.app.state.settings  # type: ignore[attr-defined]
    assert ADMIN not in repr(settings) + str(settings) + settings.model_dump_json()
