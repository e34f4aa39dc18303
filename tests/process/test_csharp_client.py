"""The client in examples/csharp, compiled and run against a live server."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.settings import Settings
from tests.testkit.client import Client, png
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image
from tests.testkit.server import running

_SOURCE = Path(__file__).parents[2] / "examples" / "csharp" / "Program.cs"
_COMPILER = shutil.which("mcs") or shutil.which("csc")
_MONO = shutil.which("mono")

pytestmark = pytest.mark.skipif(
    _COMPILER is None or _MONO is None,
    reason="no C# compiler with Mono here: install mono-mcs, mono-runtime and libmono-system-net-http4.0-cil",
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("csharp") / "RoiClient.exe"
    command = [str(_COMPILER), "-warn:4", "-warnaserror", f"-out:{out}", "-r:System.Net.Http.dll", str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running(Settings(models_dir=tmp_path_factory.mktemp("csharp") / "models"), FakeExtractor()) as client:
        yield client


@pytest.fixture
def run(program: Path, server: Client) -> Run:
    """Return a function that runs the client; the line's PC is a German one, where 0.2 is written 0,2."""

    def run_client(*words: str | Path, url: str = f"http://{server.host}:{server.port}") -> object:
        environment = {**os.environ, "LANG": "de_DE.UTF-8", "LC_ALL": "de_DE.UTF-8"}
        command = [str(_MONO), str(program), url, *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120)

    return run_client


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "good"
    folder.mkdir()
    for seed in range(6):
        (folder / f"größe ñ {seed}.png").write_bytes(png(seed))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "1 good.png").write_bytes(png(50))
    (folder / "2 bad.png").write_bytes(encoded(defective_image(60)))
    (folder / "3 good.JPG").write_bytes(encoded(good_image(51), "JPEG", quality=95))
    return folder


def test_it_fits_calibrates_and_inspects_a_folder(run: Run, server: Client, good: Path, parts: Path) -> None:
    roi = ["--roi", "scheibe-ñ", "--role", "Master1", "--recipe", "Csharp", "--mm-per-px", "0.25"]
    fitted = run("fit", good, *roi)
    assert (fitted.returncode, fitted.stderr) == (0, "")
    assert re.search(r"learned 6 images, \d+ of 384 embeddings kept", fitted.stdout)
    assert "8 of 8 steps" in fitted.stdout
    client = server.at("scheibe-ñ", role_id="Master1", recipe="csharp")
    assert client.about("/manifest").ok()["fit"]["mm_per_px"] == 0.25
    assert len(client.files("ok")) == 6

    unsure = run("inspect", parts, *roi)
    assert (unsure.returncode, unsure.stderr) == (0, "")
    assert [line.split()[0] for line in unsure.stdout.splitlines()] == ["--"] * 3

    calibrated = run("calibrate", *roi)
    assert (calibrated.returncode, calibrated.stderr) == (0, "")
    threshold = client.about("/manifest").ok()["calib"]["threshold"]
    assert f"threshold {threshold:.4f} from 6 good parts" in calibrated.stdout
    assert "note: " in calibrated.stdout  # six parts are few, and the service says so

    inspected = run("inspect", parts, *roi)
    assert (inspected.returncode, inspected.stderr) == (2, "")
    lines = [line for line in inspected.stdout.splitlines() if not line.startswith(" ")]
    assert [(line.split()[0], line.split(maxsplit=3)[3]) for line in lines] == [
        ("ok", "1 good.png"),
        ("ng", "2 bad.png"),
        ("ok", "3 good.JPG"),
    ]
    (found,) = client.infer((parts / "2 bad.png").read_bytes(), mm_per_px=0.25).ok()["regions"]
    shown = f"{found['area_mm2']:.2f} mm² at x {found['x']}, y {found['y']}, {found['w']} × {found['h']} px"
    assert shown in inspected.stdout


def test_a_folder_of_good_parts_only_is_exit_code_0(run: Run, good: Path, parts: Path) -> None:
    (parts / "2 bad.png").unlink()
    assert run("fit", good, "--roi", "all-good").returncode == 0
    assert run("calibrate", "--roi", "all-good").returncode == 0
    assert run("inspect", parts, "--roi", "all-good").returncode == 0


def test_errors_are_one_line_with_sentence_code_and_request_id(run: Run, good: Path, parts: Path) -> None:
    assert run("fit", good, "--roi", "errors").returncode == 0
    (good / "broken.png").write_bytes(png(1)[:100])
    told = {
        "memory_not_found": run("inspect", parts, "--roi", "nobody"),
        "mm_per_px_mismatch": run("inspect", parts, "--roi", "errors", "--mm-per-px", "0.5"),
        "undecodable_image": run("fit", good, "--roi", "errors"),
        "reserved_recipe_id": run("calibrate", "--recipe", "last"),
        "invalid_input": run("calibrate", "--roi", "errors", "--mm-per-px", "-1"),
    }
    for code, done in told.items():
        assert done.returncode == 1
        assert re.fullmatch(rf".+\. \({code}, request [0-9a-f-]{{36}}\)\n", done.stderr), (code, done.stderr)


def test_what_is_wrong_before_the_service_is_asked_is_said_too(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    empty = tmp_path / "empty"
    empty.mkdir()
    told = {
        "cannot be reached": run("calibrate", url=f"http://127.0.0.1:{port}"),
        "no images": run("fit", empty),
        "missing": run("fit", tmp_path / "missing"),
        "usage:": run("learn", empty),
    }
    for words, done in told.items():
        assert done.returncode == 1
        assert words in done.stderr
        assert "   at " not in done.stderr  # no stack trace
    assert run("fit").returncode == run("inspect").returncode == run("calibrate", "--roi").returncode == 1
