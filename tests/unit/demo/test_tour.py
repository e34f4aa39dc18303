import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from email.message import Message
from functools import cache

import cv2
import httpx
import numpy as np
import pytest
from rich.console import Console

from backend.cli import main
from backend.demo import tour
from backend.demo.api import Api
from backend.demo.client import Answer
from backend.demo.demo_parts import rendered_parts
from backend.demo.tour import aligned_text, extractor_line, result_table, run_demo, score_text, summary_line
from tests.testkit.fakes import inspected


@cache
def eight_parts():
    return rendered_parts(8, 0.2)


_HEALTH = {"status": "ok", "model": "dinov2-vit-s/14", "device": "cpu", "reason": None}


@pytest.mark.parametrize(
    ("health", "chosen", "line"),
    [
        (_HEALTH, "auto", "Extractor: dinov2-vit-s/14 on cpu (its weights were found)"),
        (
            {**_HEALTH, "model": "filter-bank"},
            "filter-bank",
            "Extractor: filter-bank on cpu (chosen by BDI_EXTRACTOR=filter-bank)",
        ),
        (
            {**_HEALTH, "model": "filter-bank", "reason": "No weights."},
            "auto",
            "Extractor: filter-bank on cpu (No weights)",
        ),
    ],
)
def test_the_first_line_says_which_extractor_runs_and_why(health, chosen, line):
    assert extractor_line(health, chosen) == line


_CORNER = np.zeros((20, 30), np.bool_)
_CORNER[:4, :4] = True
_IN_THE_CORNER = ({"contour": [[2, 2], [6, 2], [6, 6]], "area_mm2": 1.0},)


def _ng(**changes):
    return inspected(**{"name": "part [1]", "is_defective": True, "score": 0.75, "decision": "ng", **changes})


def test_the_table_shows_score_threshold_decision_areas_and_time():
    regions = [{"contour": [[1, 1]], "area_mm2": area} for area in (1.0, 3.0, 2.0)]
    console = Console(file=io.StringIO(), width=100)
    console.print(result_table([_ng(regions=regions, elapsed_ms=41.4), _ng(decision="ok", defect_mask=_CORNER)]))
    rows = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in console.file.getvalue().splitlines() if "│" in line]
    assert rows[0] == ["part [1]", "0.750", "0.500", "NG (found)", "3.0, 2.0 +1", "-", "41"]
    assert rows[1] == ["part [1]", "0.750", "0.500", "OK (missed)", "-", "no", "10"]


def test_the_summary_sets_parts_apart_that_helped_to_set_the_threshold():
    items = [
        _ng(),
        _ng(note="set the threshold"),
        _ng(is_defective=False, decision="ok"),
        _ng(is_defective=False),
    ]
    assert summary_line(items) == (
        "1 of 2 unseen good parts passed, 1 of 1 unseen defects were found. "
        "Not counted: 1 that helped to set the threshold, 1 of them found."
    )
    assert summary_line(items[:1]) == "0 of 0 unseen good parts passed, 1 of 1 unseen defects were found."


def test_the_summary_counts_found_defects_of_a_known_place_that_a_region_lies_on():
    items = [
        _ng(),
        _ng(defect_mask=_CORNER),
        _ng(defect_mask=_CORNER, regions=_IN_THE_CORNER),
        _ng(defect_mask=_CORNER, regions=_IN_THE_CORNER, decision="ok"),
    ]
    assert summary_line(items) == (
        "0 of 0 unseen good parts passed, 3 of 4 unseen defects were found, 1 of 2 with a region on the defect."
    )


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("percentile", "percentile, the map's 99.5th percentile"),
        ("top_mean", "top_mean, mean of the hottest 0.5 % of its pixels"),
        ("max", "max, the map's largest value"),
        ("area", "area, the highest level that a connected area of 2 mm² reaches"),
    ],
)
def test_the_score_is_named_as_in_the_api_and_in_words(mode, text):
    assert score_text({"score_mode": mode, "score_percentile": 99.5, "area_mm2_thr": 2.0}) == text


@pytest.mark.parametrize(
    ("fit", "text"),
    [
        ({"aligned": True, "alignment": 0.957}, "yes (0.96)"),
        ({"aligned": False, "alignment": 0.03}, "no (0.03)"),
        ({"aligned": False, "alignment": None}, "no"),
    ],
)
def test_whether_the_roi_is_aligned_is_said_with_its_figure(fit, text):
    assert aligned_text(fit) == text


class Recorder:
    """A client that keeps what it is asked to send."""

    def __init__(self):
        self.forms, self.bodies = [], []

    def send(self, form):
        self.forms.append(form)
        return Answer(path=form.path, status=200, headers=Message(), body=b'{"n_ok_total": 6}')

    def post(self, path, value):
        self.bodies.append((path, value))
        return Answer(path=path, status=200, headers=Message(), body=b"{}")


def test_the_fit_sends_every_good_part_the_scale_and_the_ring():
    client = Recorder()
    assert Api(client, eight_parts()).fit() == {"n_ok_total": 6}
    (form,) = client.forms
    assert form.path == "/fit_ok"
    assert form.body.count(b'name="images"') == 6
    assert b'name="mode"\r\n\r\nreplace' in form.body
    assert b'name="mm_per_px"\r\n\r\n0.2' in form.body
    shape = json.loads(re.search(rb'name="shape"\r\n\r\n(.*?)\r\n', form.body)[1])
    assert shape == {"kind": "annulus", "cx": 191.5, "cy": 191.5, "r": 192 * 0.935, "r_inner": 192 * 0.485}


@pytest.mark.parametrize(("ng_scores", "sent"), [([], None), ([0.8, 0.9], [0.8, 0.9])])
def test_the_calibration_leaves_good_scores_and_settings_to_the_service(ng_scores, sent):
    client = Recorder()
    Api(client, eight_parts()).calibrate(ng_scores)
    roi = {"role_id": "Demo", "roi_id": "part-1", "mm_per_px": 0.2}
    assert client.bodies == [("/calibrate_ng", {**roi, "ng_scores": sent})]


def test_the_demo_names_the_package_that_it_lacks_and_how_to_install_it(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "backend.demo.tour")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == 'The demo needs rich, which is not installed: pip install ".[demo]"\n'


@pytest.fixture
def run(capsys):
    """Return a call of the demo; it returns the exit status and what was printed."""

    def demo(**changes):
        options = {"data": None, "n_good": 8, "mm_per_px": 0.2, "keep_models": False}
        return run_demo(**{**options, **changes}), capsys.readouterr().out

    return demo


@pytest.fixture
def ends_at_once(monkeypatch):
    """Put a process that says why it cannot start in the place of the server."""
    monkeypatch.setattr(tour, "PLAIN_UVICORN", ["-c", "import sys; sys.exit('No module named torch')"])


def test_a_server_that_dies_at_start_shows_the_end_of_its_log_and_what_to_do(tmp_path, run, ends_at_once):
    status, text = run(out=tmp_path)
    assert status == 1
    assert "the server ended with exit code 1 at start" in text
    assert "No module named torch" in text
    assert "pip install -r requirements.txt" in text


def test_a_broken_image_is_named_and_the_demo_fails(tmp_path, run, ends_at_once):
    for place in ("train/good", "test/good", "test/crack"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "001.png").write_bytes(b"not an image")
    status, text = run(data=tmp_path, out=tmp_path / "out")
    assert status == 1
    assert "001.png" in text


def test_a_missing_folder_is_named_and_the_demo_fails(tmp_path, run, ends_at_once):
    status, text = run(data=tmp_path / "nowhere", out=tmp_path / "out")
    assert status == 1
    assert "There are no images in" in text


def test_a_seed_beside_a_folder_is_refused(tmp_path, run):
    status, text = run(data=tmp_path, out=tmp_path / "out", seed=1)
    assert status == 1
    assert "--seed chooses rendered parts; it has no effect beside --data." in text


def test_an_interrupted_demo_says_so_and_fails(tmp_path, monkeypatch, run, ends_at_once):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tour, "rendered_parts", interrupt)
    status, text = run(out=tmp_path)
    assert status == 1
    assert "Interrupted. The server was stopped." in text


@pytest.mark.slow
def test_the_demo_finds_defects_with_the_real_server_and_leaves_a_page(tmp_path):
    out = tmp_path / "out"
    command = (
        "import sys; from backend.cli import main; sys.exit(main(['demo', '--n-good', '10', '--out', sys.argv[1]]))"
    )
    environment = {**os.environ, "BDI_EXTRACTOR": "filter-bank"}
    done = subprocess.run(
        [sys.executable, "-c", command, str(out)], env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Extractor: filter-bank on cpu (chosen by BDI_EXTRACTOR=filter-bank)"
    assert re.fullmatch(
        r"\d of 2 unseen good parts passed, \d of 6 unseen defects were found"
        r"(, \d of \d with a region on the defect)?\. Not counted: 2 .*",
        lines[-2],
    )
    assert re.fullmatch(r"Score of an image: .+\. ROI aligned: .+\.", lines[-3])
    assert lines[-1] == f"Page: {(out / 'index.html').resolve()}"
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<article") == 10
    assert all(
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).shape == (384, 384, 3)
        for data in re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", page)
    )
    assert not (out / "models").exists()
    assert "Finished server process" in (out / "server.log").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_the_demo_keeps_the_page_of_its_service_there_until_it_is_interrupted(tmp_path):
    command = (
        "import signal, sys; from backend.cli import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored where the tests run in the background
        "sys.exit(main(['demo', '--n-good', '10', '--serve', '--out', sys.argv[1]]))"
    )
    environment = {**os.environ, "BDI_EXTRACTOR": "filter-bank", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    ) as demo:
        try:
            line = next(line for line in demo.stdout if line.startswith("The engineer's page"))
            address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
            next(demo.stdout)
            roi = {"role_id": "Demo", "roi_id": "part-1"}
            assert "Demo / part-1" in httpx.get(f"{address}/ui").text
            decisions = httpx.get(f"{address}/decisions", params=roi).json()["decisions"]
            assert len(decisions) == 12, "ten, and the two that set the threshold once more"
            assert all(each["audit_entry_id"] for each in decisions), "Why shows their images"
            assert len(httpx.get(f"{address}/datasets/list", params=roi).json()["classes"]["ng"]["files"]) == 2
        finally:
            demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
