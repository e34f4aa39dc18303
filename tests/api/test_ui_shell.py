"""The frame of the engineer's page: signing in, tokens, policies, languages, static files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from backend.serving import sessions as sessions_module
from backend.serving.sessions import Sessions
from backend.ui.page import environment
from backend.ui.routes import ROUTES, SCREENS
from backend.ui.static_files import FOLDER, static_files
from backend.ui.texts import STRINGS, Words, language_of, missing, table
from tests.testkit.app import Api, error_of, running_app
from tests.testkit.fakes import encoded, good_image

ADMIN, INSPECT = "admin-0123456789abcdef", "inspect-0123456789abcdef"
KEYS = f"admin:{ADMIN},inspect:{INSPECT}"
TEMPLATES = Path(STRINGS).parent / "templates"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
OWN_SCRIPTS = [path for path in FOLDER.rglob("*.js") if path.parent.name != "lib"]
PAGES = ["/ui", *(f"/ui/{screen.name}" for screen in SCREENS if screen.name != "overview")]


@pytest.fixture(scope="module")
def open_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("open") / "models") as started:
        yield started


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("keyed") / "models", api_keys=KEYS) as started:
        yield started


@pytest.fixture(autouse=True)
def no_cookies(request: pytest.FixtureRequest) -> None:
    for name in {"open_api", "keyed"} & set(request.fixturenames):
        request.getfixturevalue(name).client.cookies.clear()


def token_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf_token" value="([0-9a-f]{64})"', page.text)
    assert found, page.text
    return found[1]


def sign_in(api: Api, key: str, **fields: str) -> httpx.Response:
    token = token_of(api.client.get("/ui/sign-in"))
    return api.client.post("/ui/sign-in", data={"key": key, "csrf_token": token, **fields}, follow_redirects=False)


# --- signing in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_whoever_is_not_signed_in_is_sent_to_the_sign_in_and_comes_back(keyed: Api, path: str) -> None:
    asked = keyed.client.get(f"{path}?recipe=summer", follow_redirects=False)
    assert asked.status_code == 303
    assert asked.headers["Location"].startswith("/ui/sign-in?next=%2Fui")
    assert sign_in(keyed, ADMIN, next=f"{path}?recipe=summer").headers["Location"] == f"{path}?recipe=summer"


def test_every_address_of_the_page_but_the_sign_in_and_its_files_wants_a_session(keyed: Api) -> None:
    for route in ROUTES:
        path = route.path.replace("{job_id}", "0" * 32).replace("{address:path}", "x")
        for method in ("GET", "POST"):
            status = keyed.client.request(method, path, follow_redirects=False).status_code
            allowed = keyed.client.request("OPTIONS", path).headers["Allow"]
            if method not in allowed:
                assert status == 405, path
            elif path.startswith("/ui/static/"):
                assert status == 404
            elif route.path in ("/ui/sign-in", "/ui/sign-out", "/ui/language"):
                assert status == (200 if method == "GET" else 403), path
            else:
                assert status == 303, path


def test_a_fragment_has_the_browser_go_to_the_sign_in(keyed: Api) -> None:
    answer = keyed.client.get("/ui", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (204, "/ui/sign-in")


def test_a_key_opens_a_session_in_a_cookie_that_no_script_reads(keyed: Api) -> None:
    signed_in = sign_in(keyed, INSPECT)
    assert signed_in.status_code == 303
    cookie = signed_in.headers["Set-Cookie"]
    assert re.match(r"roi_session=[\w-]{43}; HttpOnly; Path=/; SameSite=strict$", cookie)
    assert keyed.client.get("/ui").status_code == 200
    assert keyed.client.get("/recipes").status_code == 200, "the session holds for every call"


def test_signing_in_begins_a_new_session_and_signing_out_ends_it(keyed: Api) -> None:
    before = keyed.client.get("/ui/sign-in").headers["Set-Cookie"]
    assert sign_in(keyed, ADMIN).headers["Set-Cookie"] != before
    session_id = keyed.client.cookies["roi_session"]
    page = keyed.client.get("/ui")
    left = keyed.client.post("/ui/sign-out", data={"csrf_token": token_of(page)}, follow_redirects=False)
    assert left.headers["Location"] == "/ui/sign-in"
    keyed.client.cookies.clear()
    assert keyed.client.get("/recipes", headers={"Cookie": f"roi_session={session_id}"}).status_code == 401


def test_over_https_the_cookie_is_sent_over_https_alone(keyed: Api) -> None:
    assert "; Secure" in keyed.client.get("https://testserver/ui/sign-in").headers["Set-Cookie"]


def test_each_port_has_a_cookie_of_its_own(keyed: Api) -> None:
    cookie = keyed.client.get("/ui/sign-in", headers={"Host": "line-pc:8123"}).headers["Set-Cookie"]
    assert cookie.startswith("roi_session_8123=")


@pytest.mark.parametrize("key", ["", "x", "admin:" + ADMIN, ADMIN[:-1], "ñ" * 20, "\ud83d\ude00"])
def test_another_key_is_refused(keyed: Api, key: str) -> None:
    token = token_of(keyed.client.get("/ui/sign-in"))
    body = {"key": key.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "csrf_token": token}
    refused = keyed.client.post("/ui/sign-in", data=body)
    assert refused.status_code == 401
    assert "not known here" in refused.text
    assert keyed.client.get("/recipes").status_code == 401


@pytest.mark.parametrize(
    "next_",
    [
        "//evil.example",
        "https://evil.example",
        "/ui//evil.example",
        "/ui/\\evil",
        "javascript:x",
        "/health",
        "/ui\r\nX: y",
    ],
)
def test_after_the_sign_in_nobody_is_led_elsewhere(keyed: Api, next_: str) -> None:
    assert sign_in(keyed, ADMIN, next=next_).headers["Location"] == "/ui"


def test_a_session_has_the_role_of_its_key(keyed: Api) -> None:
    sign_in(keyed, INSPECT)
    token = token_of(keyed.client.get("/ui"))
    body = {"from": "default", "to": "summer"}
    refused = keyed.client.post("/recipes/copy", json=body, headers={"X-CSRF-Token": token})
    error_of(refused, 403, "forbidden")


def test_a_key_that_is_sent_goes_before_the_session(keyed: Api) -> None:
    sign_in(keyed, ADMIN)
    assert keyed.client.get("/recipes", headers={"X-API-Key": "x" * 20}).status_code == 401
    assert keyed.client.delete(f"/jobs/{'0' * 32}", headers={"X-API-Key": INSPECT}).status_code == 403
    assert keyed.client.delete(f"/jobs/{'0' * 32}", headers={"X-API-Key": ADMIN}).status_code == 404, "needs no token"


def test_a_session_ends_after_its_time_and_the_oldest_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(sessions_module.time, "monotonic", lambda: now_s)
    kept = Sessions(lifetime_s=10, most=2)
    first, second, third = (kept.sign_in("admin") for _ in range(3))
    roles = [kept.visit(each.session_id).role for each in (first, second, third)]
    assert roles == [None, "admin", "admin"]
    now_s = 110.0
    assert kept.visit(third.session_id).role is None
    assert kept.visit(third.session_id).token == third.token


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("POST", "/refit"), ("DELETE", f"/jobs/{'0' * 32}"), ("POST", "/infer")])
def test_a_change_by_a_session_needs_the_token_of_its_page(keyed: Api, method: str, path: str) -> None:
    sign_in(keyed, ADMIN)
    token = token_of(keyed.client.get("/ui"))
    for wrong in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": token[:-1]}, {"X-CSRF-Token": "ñ".encode()}):
        refused = keyed.client.request(method, path, headers=wrong)
        assert "X-CSRF-Token" in error_of(refused, 403, "forbidden")["error"]
    assert keyed.client.request(method, path, headers={"X-CSRF-Token": token}).status_code not in (401, 403)


def test_the_token_of_another_session_is_none(keyed: Api) -> None:
    foreign = token_of(keyed.client.get("/ui/sign-in"))
    keyed.client.cookies.clear()
    sign_in(keyed, ADMIN)
    assert keyed.client.post("/refit", json={}, headers={"X-CSRF-Token": foreign}).status_code == 403


@pytest.mark.parametrize("path", ["/ui/language", "/ui/sign-out", "/ui/sign-in", f"/ui/jobs/{'0' * 32}/cancel"])
def test_a_form_of_the_page_needs_its_token_without_keys_too(open_api: Api, path: str) -> None:
    form = {"language": "es", "key": "x"}
    assert open_api.client.post(path, data=form).status_code == 403
    open_api.client.cookies.clear()
    token = token_of(open_api.client.get("/ui"))
    for wrong in (form, {**form, "csrf_token": "0" * 64}, {**form, "csrf_token": ""}):
        refused = open_api.client.post(path, data=wrong)
        assert (refused.status_code, "<code>forbidden</code>" in refused.text) == (403, True)
    answer = open_api.client.post(path, data={**form, "csrf_token": token}, follow_redirects=False)
    assert answer.status_code in (303, 404)


def test_a_page_of_another_site_may_send_no_form(open_api: Api) -> None:
    token = token_of(open_api.client.get("/ui"))
    form, foreign = {"language": "es", "csrf_token": token}, {"Origin": "http://evil.example"}
    error_of(open_api.client.post("/ui/language", data=form, headers=foreign), 403, "forbidden")


def test_a_form_is_bounded(open_api: Api) -> None:
    open_api.client.get("/ui")
    assert open_api.client.post("/ui/language", data={"language": "x" * 300_000}).status_code == 413


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, "/ui/sign-in"])
def test_the_page_runs_nothing_that_stands_in_it(open_api: Api, path: str) -> None:
    open_api.client.get("/ui")
    answer = open_api.client.get(path)
    assert answer.headers.get_list("Content-Security-Policy") == [POLICY]
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "same-origin", "or browsers send the page's forms with Origin: null"


class _Inline(HTMLParser):
    """Refuses inline scripts, styles and handlers, and addresses of other hosts."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert tag != "style"
        assert tag != "script" or "src" in names
        assert not [name for name in names if name == "style" or name.startswith(("on", "hx-on"))], names
        for name in ("src", "href", "action", "hx-get", "hx-post", "hx-delete"):
            assert names.get(name) is None or re.match(r"(/(?!/)|#)", str(names[name])), names


@pytest.mark.parametrize("path", [*PAGES, "/ui/sign-in"])
def test_the_page_has_nothing_inline_and_leads_to_no_other_host(open_api: Api, path: str) -> None:
    _Inline().feed(open_api.client.get(path).text)


@pytest.mark.parametrize("template", sorted(path.name for path in TEMPLATES.iterdir()))
def test_no_template_has_anything_inline(template: str) -> None:
    text = (TEMPLATES / template).read_text("utf-8")
    assert not re.search(
        r"<style|<script(?![^>]* src=)|\sstyle=|\son\w+=|hx-on|javascript:|\|\s*safe|hx-vals=.js:", text
    )
    assert not re.search(r"https?://|[\"'(]//", text)


HOSTILE = "\"><script>alert(1)</script>'&{{7777*7777}}"


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("field", ["recipe", "role_id", "roi_id", "model_key"])
def test_what_an_address_holds_is_escaped(open_api: Api, path: str, field: str) -> None:
    answer = open_api.client.get(path, params={"role_id": "Inspection", "roi_id": "a", field: HOSTILE})
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<script>alert" not in answer.text
    assert "60481729" not in answer.text, "a template in an address is text"
    _Inline().feed(answer.text)


def test_a_refused_call_is_a_page_that_says_why(open_api: Api) -> None:
    answer = open_api.client.get("/ui/learn", params={"recipe": "last", "role_id": "Inspection", "roi_id": "a"})
    assert answer.status_code == 400
    assert "reserved_recipe_id" in answer.text


# --- languages --------------------------------------------------------------------------------------------------------


def test_both_languages_have_every_text_with_the_same_numbers_in_it() -> None:
    assert missing(table()) == []
    for key, texts in table().items():
        holes = [sorted(re.findall(r"\{\w*\}", text)) for text in texts.values()]
        assert holes[0] == holes[1], key


def test_every_key_that_a_template_or_a_screen_names_is_in_the_table() -> None:
    code = [path.read_text("utf-8") for path in [*TEMPLATES.glob("*.html"), *STRINGS.parent.rglob("*.py")]]
    named = {key for text in code for key in re.findall(r'\b(?:t|words)\(\s*"([a-z]+\.[a-z0-9_]+)"\s*[,)]', text)}
    assert named
    assert named - table().keys() == set()


class _Texts(HTMLParser):
    """Collects what a reader would read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attrs if name in ("title", "alt", "aria-label", "placeholder", "hx-confirm")
        ]

    def handle_data(self, data: str) -> None:
        self.found.append(data)


@pytest.mark.parametrize("template", sorted(path.name for path in TEMPLATES.glob("*.html")))
def test_a_template_has_no_text_of_its_own(template: str) -> None:
    text = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", "", (TEMPLATES / template).read_text("utf-8"), flags=re.DOTALL)
    texts = _Texts()
    texts.feed(text)
    units = {"mm", "mm²", "px", "s", "h", "MB", "ROI", "OK", "NG", "CSV", "PNG", "p95", "n"}
    found = {word for each in texts.found for word in re.findall(r"[^\W\d_]+", each)}
    assert found - units == set()


@pytest.mark.parametrize(
    ("chosen", "accepted", "expected"),
    [
        (None, "", "en"),
        (None, "es-ES,es;q=0.9,en;q=0.8", "es"),
        (None, "de, en;q=0.5, es;q=0.7", "es"),
        (None, "es;q=0, en;q=0.1", "en"),
        (None, "es;q=0", "en"),
        (None, "esperanto", "en"),
        (None, "es;q=x", "en"),
        ("en", "es", "en"),
        ("es", "en", "es"),
        ("fr", "es", "es"),
    ],
)
def test_the_language_is_the_chosen_one_else_the_browsers(chosen: str | None, accepted: str, expected: str) -> None:
    assert language_of(chosen, accepted) == expected


def test_a_choice_of_language_is_kept(open_api: Api) -> None:
    page = open_api.client.get("/ui")
    assert '<html lang="en">' in page.text
    form = {"language": "es", "next": "/ui/system", "csrf_token": token_of(page)}
    assert open_api.client.post("/ui/language", data=form, follow_redirects=False).headers["Location"] == "/ui/system"
    assert '<html lang="es">' in open_api.client.get("/ui").text


def test_numbers_and_times_are_written_as_the_language_does() -> None:
    english, spanish = Words("en"), Words("es")
    assert (english.number(12345.678, 2), spanish.number(12345.678, 2)) == ("12,345.68", "12\u202f345,68")
    assert (english.number(1234), spanish.number(1234)) == ("1,234", "1234")
    assert (english.number(-0.5, 1), english.number(None)) == ("−0.5", "–")
    assert (english.percent(0.031), spanish.percent(0.031)) == ("3.1\u202f%", "3,1\u202f%")
    assert (english.size(999), english.size(1_500_000), spanish.size(None)) == ("999\u202fB", "1.5\u202fMB", "–")
    assert re.fullmatch(r"\d{1,2} \w{3} 2026, \d\d:\d\d", english.time("2026-03-14T09:26:53+00:00"))
    assert english.time(None) == "–"


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_libraries_are_what_was_published_and_have_their_licences() -> None:
    folder = FOLDER / "lib"
    listed = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text("utf-8").splitlines())
    assert listed.keys() == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    libraries = {name.split("-")[0] for name in listed}
    assert {f"{library}-LICENSE.txt" for library in libraries} <= listed.keys()


def test_own_scripts_are_short() -> None:
    assert sum(len(path.read_text("utf-8").splitlines()) for path in OWN_SCRIPTS) <= 300
    assert max(len(line) for path in OWN_SCRIPTS for line in path.read_text("utf-8").splitlines()) <= 140


@pytest.mark.parametrize("script", OWN_SCRIPTS, ids=lambda path: path.name)
def test_own_scripts_evaluate_nothing_and_write_no_html(script: Path) -> None:
    text = script.read_text("utf-8")
    assert not re.search(
        r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write|https?://", text
    )


def test_a_file_is_kept_by_the_browser_and_found_by_its_digest_alone(keyed: Api) -> None:
    for file in static_files().values():
        answer = keyed.client.get(f"/ui/static/{file.address}")
        assert (answer.status_code, answer.content) == (200, file.content)
        assert answer.headers.get_list("Cache-Control") == ["public, max-age=31536000, immutable"]
        assert answer.headers["Content-Type"] == file.media_type
    for wrong in ("page.css", "0123456789abcdef/page.css", "../page.py", "..%2fpage.py", "%2e%2e/texts.py"):
        assert keyed.client.get(f"/ui/static/{wrong}").status_code in (401, 404)


def test_templates_escape_whatever_they_show() -> None:
    shown = environment().from_string("{{ text }}").render(text=HOSTILE)
    assert "<" not in shown
    assert '"' not in shown


def test_a_learned_roi_can_be_chosen_in_the_head(open_api: Api) -> None:
    open_api.fit([encoded(good_image(seed, image_hw=(64, 64))) for seed in range(3)]).raise_for_status()
    text = open_api.client.get("/ui/learn").text
    assert '<option value="/ui/learn?role_id=Inspection&amp;roi_id=inspection-1" selected>' in text
