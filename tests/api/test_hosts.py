"""Names that are re-pointed at this machine, pages that call, proxies that speak for others, guessed keys."""

from __future__ import annotations

import http.client
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from backend.serving.guesses import FREE_GUESSES
from backend.settings import Settings
from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import png
from tests.testkit.fakes import FakeExtractor, plates
from tests.testkit.server import running

HERE = "http://127.0.0.1:8000"
ADMIN, INSPECT = "admin-0123456789abcdef", "inspect-0123456789abcdef"
KEYS = f"admin:{ADMIN},inspect:{INSPECT}"


def ask(port: int, method: str, path: str, headers: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Send a request without a body, with exactly these headers; return the status and the text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("hosts") / "models") as started:
        answer_of(started.fit(plates([1, 2])))
        yield started


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_page_whose_name_was_re_pointed_at_this_machine_reads_and_changes_nothing(tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path / "models", extractor="filter-bank")
    with running(settings, FakeExtractor()) as client:
        client.fit([png(1), png(2)]).ok()
        client.upload("ok", [png(3)]).ok()
        evil = {"Host": f"evil.com:{client.port}"}
        page = {**evil, "Origin": f"http://evil.com:{client.port}"}
        for headers in (evil, page):
            assert client.fit([png(4)], headers=headers).ok(403)["code"] == "forbidden"
            assert client.infer(png(4), headers=headers).status == 403
            for path in ("/datasets/list", "/state", "/manifest"):
                assert client.about(path, headers=headers).status == 403
            for path in ("/recipes", "/health", "/docs", "/openapi.json", "/metrics", "/nothing"):
                assert client.get(path, headers=headers).status == 403, path
            cleared = client.send(
                "DELETE", "/datasets/clear?role_id=Inspection&roi_id=inspection-1&label=ok", None, headers
            )
            assert cleared.status == 403
            assert client.send("OPTIONS", "/infer", None, headers).status == 403
        assert len(client.files("ok")) == 3


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LocalHost:8000", "localhost.", "localhost.:8000", "127.0.0.1", "127.0.0.1:1", "127.9.9.9:8000",
        "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]:8000", "localhost:",
    ],
)  # fmt: skip
def test_over_loopback_the_names_of_the_loopback_are_answered(api: Api, host: str) -> None:
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host.removesuffix(':')}".lower()}):
        assert api.client.get(f"{HERE}/recipes", headers=headers).status_code == 200
        assert api.client.post(f"{HERE}/infer", headers=headers).status_code == 422


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "evil.com:8000", "localhost.evil.com", "127.0.0.1.evil.com", "xn--localhost-9za", "line-pc", "a",
        "0.0.0.0:8000", "192.168.0.7:8000", "[::]:8000", "[::2]", "localhost..", "evil.com.", "testserver",
    ],
)  # fmt: skip
@pytest.mark.parametrize("server", [HERE, "http://[::1]:8000", "http://localhost:8000", "http://[::ffff:127.0.0.1]"])
def test_over_loopback_other_names_are_refused(api: Api, server: str, host: str) -> None:
    for method, path in (("GET", "/recipes"), ("GET", "/health"), ("POST", "/infer"), ("DELETE", "/datasets/clear")):
        refused = error_of(api.client.request(method, server + path, headers={"Host": host}), 403, "forbidden")
        assert "BDI_ALLOWED_HOSTS" in refused["error"]
        assert "evil" not in refused["error"]


@pytest.mark.parametrize(
    "host", ["", " ", "localhost@evil.com", "localhost evil.com", "evil.com/", "l\u043ecalhost", "[::1", ":8000"]
)
def test_what_is_no_host_is_refused_for_reading_too(api: Api, host: str) -> None:
    for method, path in (("GET", "/recipes"), ("POST", "/infer")):
        headers = {b"Host": host.encode()}
        error_of(api.client.request(method, HERE + path, headers=headers), 400, "bad_request")


def test_what_changes_something_names_its_host_once(api: Api) -> None:
    for server in (HERE, "http://192.168.0.7:8000", "http://testserver"):
        for headers in ([("Host", "")], [("Host", "localhost"), ("Host", "evil.com")], [("Host", "localhost")] * 2):
            for path in ("/infer", "/fit_ok"):
                error_of(api.client.post(server + path, headers=httpx.Headers(headers)), 400, "bad_request")


def test_no_host_or_two_on_a_real_socket(tmp_path: Path) -> None:
    with running(Settings(models_dir=tmp_path / "models"), FakeExtractor()) as client:
        for headers in ([], [("Host", "")], [("Host", "localhost"), ("Host", "localhost")]):
            for method, path in (("POST", "/fit_ok"), ("GET", "/recipes")):
                assert ask(client.port, method, path, headers)[0] == 400
        assert ask(client.port, "GET", "/recipes", [("Host", "LOCALHOST.:1")])[0] == 200


def test_a_name_that_is_allowed_is_answered_over_loopback_and_elsewhere(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", allowed_hosts="Line-PC, roi.example.") as api:
        for server in (HERE, "http://192.168.0.7:8000", "http://testserver"):
            for host in ("line-pc", "LINE-PC.:8000", "roi.example:8000", "localhost:8000", "127.0.0.1"):
                assert api.client.get(f"{server}/recipes", headers={"Host": host}).status_code == 200
            for host in ("evil.com", "roi.example.evil.com", "x.roi.example", "192.168.0.8:8000"):
                assert api.client.get(f"{server}/recipes", headers={"Host": host}).status_code == 403
        assert api.client.get("http://192.168.0.7:8000/recipes").status_code == 200, "the connection's own address"
        assert api.client.get(f"{HERE}/recipes", headers={"Host": "192.168.0.7:8000"}).status_code == 403


def test_any_name_is_answered_where_that_is_asked_for(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", allowed_hosts="*") as api:
        assert api.client.get(f"{HERE}/recipes", headers={"Host": "roi.example"}).status_code == 200
        assert api.client.get(f"{HERE}/recipes", headers={"Host": ""}).status_code == 400


def test_with_keys_any_name_will_do_unless_some_are_named(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", api_keys=KEYS) as api:
        for host in ("line-pc:8000", "127.0.0.1:8000", "roi.example"):
            headers = {"Host": host, "X-API-Key": INSPECT}
            assert api.client.get(f"{HERE}/recipes", headers=headers).status_code == 200
    with running_app(tmp_path / "models", api_keys=KEYS, allowed_hosts="line-pc") as api:
        for host, status in (("line-pc:8000", 200), ("roi.example", 403)):
            headers = {"Host": host, "X-API-Key": INSPECT}
            assert api.client.get(f"{HERE}/recipes", headers=headers).status_code == status


@pytest.mark.parametrize("host", ["line-pc:8000", "192.168.0.7:8000", "line-pc.factory.example:8000"])
def test_a_program_on_another_machine_calls_under_the_name_that_the_machine_has(api: Api, host: str) -> None:
    """The published client sends no Origin."""
    for method, path, status in (("GET", "/recipes", 200), ("POST", "/infer", 422)):
        answer = api.client.request(method, f"http://192.168.0.7:8000{path}", headers={"Host": host})
        assert answer.status_code == status


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", "null")],
        [("Origin", "")],
        [("Origin", "http://evil.com")],
        [("Origin", "http://127.0.0.1:9000")],
        [("Origin", "http://localhost:8000")],
        [("Origin", "evil://127.0.0.1:8000")],
        [("Origin", "127.0.0.1:8000")],
        [("Origin", "http://127.0.0.1:8000/")],
        [("Origin", "http://127.0.0.1:8000, http://evil.com")],
        [("Origin", "http://127.0.0.1:8000 http://evil.com")],
        [("Origin", HERE), ("Origin", "http://evil.com")],
        [("Origin", HERE), ("Origin", HERE)],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
    ],
)
def test_other_pages_change_nothing(api: Api, headers: list[tuple[str, str]]) -> None:
    for path in ("/infer", "/fit_ok", "/calibrate_ng"):
        error_of(api.client.post(HERE + path, headers=httpx.Headers(headers)), 403, "forbidden")
    error_of(api.client.delete(f"{HERE}/datasets/clear", headers=httpx.Headers(headers)), 403, "forbidden")


@pytest.mark.parametrize(
    ("server", "headers"),
    [
        (HERE, {}),
        (HERE, {"Origin": HERE}),
        (HERE, {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}),
        (HERE, {"Sec-Fetch-Site": "none"}),
        (HERE, {"Origin": "https://127.0.0.1:8000"}),  # a proxy for TLS in between
        (HERE, {"Origin": "http://localhost", "Host": "localhost:80"}),
        ("http://testserver", {"Origin": "http://testserver"}),
        ("http://192.168.0.7:8000", {"Origin": "http://192.168.0.7:8000"}),
        ("http://192.168.0.7:8000", {"Origin": "http://line-pc:8000", "Host": "line-pc:8000"}),
    ],
)
def test_programs_and_the_page_of_the_service_may_call(api: Api, server: str, headers: dict[str, str]) -> None:
    assert api.client.post(f"{server}/infer", headers=headers).status_code == 422


def test_a_page_under_a_name_of_the_dns_needs_a_key_or_a_name_that_is_allowed(tmp_path: Path) -> None:
    page = {"Host": "evil.com:8000", "Origin": "http://evil.com:8000", "X-API-Key": ADMIN}
    for settings, status in (({}, 403), ({"api_keys": KEYS}, 422), ({"allowed_hosts": "evil.com"}, 422)):
        with running_app(tmp_path / "models", **settings) as api:
            assert api.client.post("http://192.168.0.7:8000/infer", headers=page).status_code == status


def test_pages_that_are_named_may_call_and_null_is_not_among_them(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", cors_origins="http://panel") as api:
        for headers in ({"Origin": "http://panel"}, {"Origin": "http://panel", "Sec-Fetch-Site": "cross-site"}):
            assert api.client.post(f"{HERE}/infer", headers=headers).status_code == 422
        assert api.client.post(f"{HERE}/infer", headers={"Origin": "null"}).status_code == 403
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
        for origin, status in (("http://panel", 200), ("http://evil.com", 400)):
            preflight = api.client.options(f"{HERE}/infer", headers={**asked, "Origin": origin})
            assert preflight.status_code == status
    with running_app(tmp_path / "models", cors_origins="*") as api:
        preflight = api.client.options(f"{HERE}/infer", headers={**asked, "Origin": "http://evil.com"})
        assert "Access-Control-Allow-Private-Network" not in preflight.headers


def test_no_answer_may_be_put_into_the_page_of_another_site(api: Api) -> None:
    for path in ("/health", "/docs", "/nothing", "/openapi.json", "/recipes", "/infer"):
        answers = [api.client.get(HERE + path), api.client.get(HERE + path, headers={"Host": "evil.com"})]
        for answer in answers:
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


# --- proxies ----------------------------------------------------------------------------------------------------------


def _client_logged(caplog: pytest.LogCaptureFixture, request_id: str) -> str | None:
    for _ in range(500):  # the line follows the answer
        for record in caplog.records:
            if record.name == "backend.requests" and getattr(record, "request_id", None) == request_id:
                return record.client  # type: ignore[attr-defined,no-any-return]
        time.sleep(0.01)
    raise AssertionError(f"no line of {request_id}")


@pytest.mark.parametrize(
    ("trusted", "sent", "expected"),
    [
        ("", ["203.0.113.9"], "127.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.0/8", ["203.0.113.9:1234"], "203.0.113.9"),
        ("127.0.0.1", ["127.0.0.1, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["10.0.0.7", "203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1,10.0.0.7", ["192.0.2.1, 203.0.113.9, 10.0.0.7"], "203.0.113.9"),
        ("127.0.0.1", ["203.0.113.9, nonsense"], "127.0.0.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
    ],
)
def test_who_called_is_what_a_trusted_proxy_says_and_nobody_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trusted: str,
    sent: list[str],
    expected: str,
) -> None:
    """Under plain uvicorn, which believes whoever calls over loopback and whomever its own variable names."""
    caplog.set_level(logging.DEBUG, "backend.requests")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    settings = Settings(models_dir=tmp_path / "models", trusted_proxies=trusted)  # type: ignore[arg-type]
    with running(settings, FakeExtractor()) as client:
        headers = [("Host", "127.0.0.1"), ("X-Request-Id", "one"), *(("X-Forwarded-For", text) for text in sent)]
        assert ask(client.port, "GET", "/recipes", headers)[0] == 200
    assert _client_logged(caplog, "one") == expected


def test_a_page_by_plain_http_is_not_the_one_by_tls_where_the_proxy_says_which(tmp_path: Path) -> None:
    for trusted, statuses in (("127.0.0.1", (422, 403)), ("", (422, 422))):
        settings = Settings(
            models_dir=tmp_path / "models",
            allowed_hosts="roi.example",  # type: ignore[arg-type]
            trusted_proxies=trusted,  # type: ignore[arg-type]
        )
        with running(settings, FakeExtractor()) as client:
            for origin, status in zip(("https://roi.example", "http://roi.example"), statuses, strict=True):
                headers = [("Host", "roi.example"), ("X-Forwarded-Proto", "https"), ("Origin", origin)]
                assert ask(client.port, "POST", "/infer", headers)[0] == status


# --- keys that are tried out ------------------------------------------------------------------------------------------


def test_guessing_is_slowed_down_and_logged_and_locks_nobody_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(models_dir=tmp_path / "models", api_keys=KEYS, trusted_proxies="127.0.0.1")  # type: ignore[arg-type]
    with running(settings, FakeExtractor()) as client:

        def status(secret: str, address: str) -> int:
            headers = [("Host", "line-pc"), ("X-API-Key", secret), ("X-Forwarded-For", address)]
            return ask(client.port, "GET", "/recipes", headers)[0]

        assert status(INSPECT, "203.0.113.9") == 200
        assert [status(f"guess-number-{n:08}", "203.0.113.9") for n in range(FREE_GUESSES)] == [401] * FREE_GUESSES
        with ThreadPoolExecutor(30) as pool:
            many = [*pool.map(lambda n: status(f"more-number-{n:08}", "203.0.113.9"), range(30))]
        # At most one a second is compared, and a few wait; the rest are not looked at.
        assert set(many) == {401, 429}
        assert many.count(429) >= 15
        assert status(INSPECT, "203.0.113.9") == 200, "a key that was good from there before"
        assert status(ADMIN, "203.0.113.10") == 200, "from elsewhere"
        assert status(ADMIN, "127.0.0.1") == 200
    assert "203.0.113.9 were wrong" in caplog.text
    for secret in (INSPECT, ADMIN, "guess-number", "more-number"):
        assert secret not in caplog.text


def test_too_many_wrong_keys_are_the_one_error_body_with_a_time_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.serving.guesses.LONGEST_WAIT_S", -1.0)
    with running_app(tmp_path / "models", api_keys=KEYS) as api:
        for number in range(FREE_GUESSES):
            error_of(api.client.get("/recipes", headers={"X-API-Key": f"guess-{number:010}"}), 401, "unauthorized")
        refused = api.client.get("/recipes", headers={"X-API-Key": "guess-xxxxxxxxxxx"})
        error_of(refused, 429, "too_many_guesses")
        assert int(refused.headers["Retry-After"]) > 0
        assert api.client.get("/health", headers={"X-API-Key": "guess-yyyyyyyyyyy"}).status_code == 200
        # The same wrong key over and over is a client that nobody has updated.
        assert api.client.get("/recipes", headers={"X-API-Key": "guess-0000000001"}).status_code == 401
