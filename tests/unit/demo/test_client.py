import json
import threading
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from backend.demo.client import Answer, CallCutOff, CallFailed, Client, fit_form, form, numbered


@pytest.fixture
def port():
    """A server that answers with what it was sent, and hangs up on ``/cut``."""

    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/cut":
                self.close_connection = True
                return
            said = {"method": self.command, "path": self.path, "body": body.decode("utf-8", "replace")}
            data = json.dumps({**said, "type": self.headers["Content-Type"]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_DELETE = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_queries_json_and_forms_arrive_as_they_were_sent(port):
    with Client(port) as client:
        assert client.get("/a", roi_id="ñ 1", n=2).ok()["path"] == "/a?roi_id=%C3%B1%201&n=2"
        assert client.delete("/b").ok()["method"] == "DELETE"
        assert json.loads(client.post("/c", {"x": [1, None]}).ok()["body"]) == {"x": [1, None]}
        fit = client.send(fit_form({"roi_id": "r"}, numbered([b"one", b"two"]), mode="add", shape=None)).ok()
    assert fit["path"] == "/fit_ok"
    assert fit["type"].startswith("multipart/form-data; boundary=")
    assert fit["body"].count('name="images"; filename="') == 2
    assert 'name="mode"\r\n\r\nadd' in fit["body"]
    assert "shape" not in fit["body"], "what is None is left out"


def test_a_call_without_an_answer_is_cut_off_and_the_next_one_opens_anew(port):
    with Client(port) as client:
        with pytest.raises(CallCutOff, match="POST /cut"):
            client.post("/cut", {})
        assert client.get("/a").status == 200


def test_a_server_that_is_not_there_cuts_every_call_off(port):
    with pytest.raises(CallCutOff):
        Client(1).get("/a")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": "Set BDI_WEIGHTS.", "code": "weights_unavailable"}', r"/fit_ok answered 503: Set BDI_WEIGHTS\."),
        (b"Bad gateway", "/fit_ok answered 503: Bad gateway"),
        (b"[1]", r"/fit_ok answered 503: \[1\]"),
    ],
)
def test_an_error_of_the_service_is_passed_on_in_its_own_words(body, words):
    with pytest.raises(CallFailed, match=words) as failed:
        Answer(path="/fit_ok", status=503, headers=Message(), body=body).ok()
    assert failed.value.status == 503


def test_a_form_is_put_together_once():
    made = form("/p", {"a": 1}, "image", [("é.png", b"data")])
    assert (made.path, b"data" in made.body) == ("/p", True)
