import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from rich.console import Console

from backend.demo import service_process
from backend.demo import tour as demo
from backend.demo.demo_parts import DemoError, evenly, folder_parts, rendered_parts
from backend.demo.service_process import serving
from backend.demo.report import FoundRegion, Inspected
from backend.demo.tour import Api, extractor_line, result_table, run_demo, summary_line


@cache
def eight_parts():
    return rendered_parts(8, 0.2)


_HEALTH = {"status": "ok", "model": "dinov2-vit-s/14", "device": "cpu", "reason": None}


@pytest.mark.parametrize(
    ("health", "chosen", "line"),
    [
        (_HEALTH, None, "Extractor: dinov2-vit-s/14 on cpu (its weights were found)"),
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


@pytest.mark.parametrize(
    ("n", "picked"),
    [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))],
)
def test_evenly_takes_at_most_so_many_from_the_whole_range(n, picked):
    paths = [Path(str(index)) for index in range(10)]
    assert evenly(paths, n) == [paths[index] for index in picked]


def test_three_quarters_of_the_rendered_good_parts_are_learned_and_the_others_held_out():
    parts = eight_parts()
    assert (len(parts.fit), len(parts.good), len(parts.defective)) == (6, 2, 8)
    assert len({part.data for part in (*parts.fit, *parts.good, *parts.defective)}) == 16
    assert all(part.defect_mask is None and not part.is_defective for part in (*parts.fit, *parts.good))
    assert all(part.defect_mask.any() and part.is_defective for part in parts.defective)


def test_too_few_good_parts_are_refused():
    with pytest.raises(DemoError, match="at least 8 good parts are needed"):
        rendered_parts(7, 0.2)


def _write(path, size=(24, 16), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), value, np.uint8))


@pytest.fixture
def folder(tmp_path):
    for index in range(60):
        _write(tmp_path / "train" / "good" / f"{index:03}.png")
    for index in range(3):
        _write(tmp_path / "test" / "good" / f"{index:03}.png", value=91)
    _write(tmp_path / "test" / "crack" / "000.png")
    _write(tmp_path / "test" / "dent" / "000.png", size=(12, 8))
    mask = np.zeros((8, 12), np.uint8)
    mask[2:4, 6:9] = 255
    (tmp_path / "ground_truth" / "dent").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "ground_truth" / "dent" / "000_mask.png"), mask)
    (tmp_path / "train" / "good" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_of_images_is_thinned_out_and_says_so(folder):
    parts = folder_parts(folder, 0.1)
    assert (len(parts.fit), len(parts.good), len(parts.defective)) == (50, 3, 2)
    assert [part.name for part in parts.defective] == ["crack/000.png", "dent/000.png"]
    assert "50 of 60 images to learn from, 3 of 3 good and 2 of 2 defective" in parts.remark
    assert parts.mm_per_px == 0.1
    assert parts.ring is None


def test_images_of_another_size_are_brought_to_the_size_of_the_first_with_their_masks(folder):
    parts = folder_parts(folder, 0.1)
    crack, dent = parts.defective
    assert crack.defect_mask is None
    assert not crack.was_resized
    assert dent.was_resized
    assert dent.image_bgr.shape == (16, 24, 3)
    assert dent.defect_mask.shape == (16, 24)
    assert dent.defect_mask[5:7, 13:17].all()
    assert not dent.defect_mask[:3].any()
    assert "1 of other sizes were brought to the 24 × 16 px of the first" in parts.remark


@pytest.mark.parametrize("missing", ["train/good", "test/good", "test/<defect>"])
def test_a_folder_without_one_of_the_three_kinds_of_image_is_refused_by_name(folder, missing):
    emptied = ["test/crack", "test/dent"] if missing == "test/<defect>" else [missing]
    for name in emptied:
        for path in (folder / name).glob("*.png"):
            path.unlink()
    with pytest.raises(DemoError, match=f"There are no images in .*{Path(missing).name}; expected are train/good"):
        folder_parts(folder, 0.2)


def _inspected(**changes):
    values = {
        "name": "part [1]",
        "is_defective": True,
        "image_bgr": np.zeros((9, 9, 3), np.uint8),
        "heatmap": np.zeros((9, 9), np.uint8),
        "score": 0.75,
        "threshold": 0.5,
        "decision": "ng",
        "regions": tuple(FoundRegion(contour_xy=((1, 1),), area_mm2=area) for area in (1.0, 3.0, 2.0)),
        "elapsed_ms": 41.4,
    }
    return Inspected(**{**values, **changes})


def test_the_table_shows_score_threshold_decision_areas_and_time():
    console = Console(file=io.StringIO(), width=100)
    console.print(result_table([_inspected(), _inspected(threshold=None, decision=None, regions=())]))
    rows = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in console.file.getvalue().splitlines() if "│" in line]
    assert rows[0] == ["part [1]", "0.750", "0.500", "NG (found)", "3.0, 2.0 +1", "41"]
    assert rows[1] == ["part [1]", "0.750", "-", "- (not judged)", "-", "41"]


def test_the_summary_sets_parts_apart_that_helped_to_set_the_threshold():
    items = [
        _inspected(),
        _inspected(note="set the threshold"),
        _inspected(is_defective=False, decision="ok"),
        _inspected(is_defective=False),
    ]
    assert summary_line(items) == (
        "1 of 2 unseen good parts passed, 1 of 1 unseen defects were found. "
        "Not counted: 1 that helped to set the threshold, 1 of them found."
    )
    assert summary_line(items[:1]) == "0 of 0 unseen good parts passed, 1 of 1 unseen defects were found."


def _api(handler):
    client = httpx.Client(transport=httpx.MockTransport(handler), base_url="http://service")
    return Api(client, eight_parts())


def test_the_fit_sends_every_good_part_the_scale_and_the_ring():
    requests = []

    def handler(request):
        requests.append(request)
        return httpx.Response(200, json={"n_ok_total": 6})

    api = _api(handler)
    assert api.fit() == {"n_ok_total": 6}
    body = requests[0].read()
    assert requests[0].url.path == "/fit_ok"
    assert body.count(b'name="images"') == 6
    assert b'name="mode"\r\n\r\nreplace' in body
    assert b'name="mm_per_px"\r\n\r\n0.2' in body
    shape = json.loads(re.search(rb'name="shape"\r\n\r\n(.*?)\r\n', body)[1])
    assert shape == {"kind": "annulus", "cx": 191.5, "cy": 191.5, "r": 192 * 0.935, "r_inner": 192 * 0.485}


@pytest.mark.parametrize(("ng_scores", "sent"), [([], None), ([0.8, 0.9], [0.8, 0.9])])
def test_the_calibration_leaves_the_good_scores_to_the_service(ng_scores, sent):
    bodies = []

    def handler(request):
        bodies.append(json.loads(request.read()))
        return httpx.Response(200, json={})

    _api(handler).calibrate(ng_scores)
    roi = {"role_id": "Demo", "roi_id": "part-1", "mm_per_px": 0.2}
    assert bodies == [{**roi, "ng_scores": sent, "score_mode": "top_mean"}]


def test_an_error_of_the_service_is_passed_on_in_its_own_words():
    api = _api(lambda request: httpx.Response(503, json={"error": "Set BDI_WEIGHTS.", "code": "weights_unavailable"}))
    with pytest.raises(DemoError, match=r"/fit_ok answered 503: Set BDI_WEIGHTS\."):
        api.fit()


def test_an_error_that_is_no_json_is_passed_on_as_it_is():
    api = _api(lambda request: httpx.Response(502, text="Bad gateway"))
    with pytest.raises(DemoError, match="/calibrate_ng answered 502: Bad gateway"):
        api.calibrate([])


def _run(**arguments):
    console = Console(file=io.StringIO(), width=100)
    status = run_demo(console=console, **arguments)
    return status, console.file.getvalue()


@pytest.fixture
def ends_at_once(monkeypatch):
    """Put a process that says why it cannot start in the place of the server."""
    monkeypatch.setattr(service_process, "_SERVER", ["-c", "import sys; sys.exit('No module named torch')"])


def test_a_server_that_dies_at_start_shows_the_end_of_its_log_and_what_to_do(tmp_path, ends_at_once):
    status, text = _run(out=tmp_path, n_good=8)
    assert status == 1
    assert "the server ended with exit code 1 at start" in text
    assert "No module named torch" in text
    assert "pip install -r requirements.txt" in text


def test_a_broken_image_is_named_and_the_demo_fails(folder, tmp_path, ends_at_once):
    (folder / "test" / "good" / "001.png").write_bytes(b"not an image")
    status, text = _run(data=folder, out=tmp_path / "out")
    assert status == 1
    assert "001.png" in text


def test_a_missing_folder_is_named_and_the_demo_fails(tmp_path, ends_at_once):
    status, text = _run(data=tmp_path / "nowhere", out=tmp_path / "out")
    assert status == 1
    assert "There are no images in" in text


@pytest.mark.parametrize("error", [KeyboardInterrupt, DemoError("stop")])
def test_the_server_is_stopped_whatever_becomes_of_the_demo(tmp_path, monkeypatch, error):
    monkeypatch.setattr(service_process, "_SERVER", ["-c", "import time; time.sleep(60)"])
    started = time.monotonic()
    processes = []

    def block():
        with serving(tmp_path, tmp_path / "log") as server:
            processes.append(server.process)
            assert server.process.poll() is None
            raise error

    with pytest.raises((KeyboardInterrupt, DemoError)):
        block()
    assert processes[0].poll() is not None
    assert time.monotonic() - started < 30


def test_an_interrupted_demo_says_so_and_fails(tmp_path, monkeypatch, ends_at_once):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "rendered_parts", interrupt)
    status, text = _run(out=tmp_path)
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
        r"\d of 2 unseen good parts passed, \d of 6 unseen defects were found\. Not counted: 2 .*", lines[-2]
    )
    assert lines[-1] == f"Page: {(out / 'index.html').resolve()}"
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<article") == 10
    assert all(
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).shape == (384, 384, 3)
        for data in re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", page)
    )
    assert not (out / "models").exists()
    assert "Finished server process" in (out / "server.log").read_text(encoding="utf-8")
