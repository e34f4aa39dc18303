"""The settings: which environment names are read, when, and what comes of a wrong value."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from backend.app import create_app
from backend.calib import SCORE_MODES
from backend.cli import main
from backend.demo.service_process import ServiceProcess, environment_with
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.client import png
from tests.testkit.fakes import FakeExtractor
from tests.testkit.server import running


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("BDI_"):
            monkeypatch.delenv(name)


# Written here once more, on purpose: installations rely on these names.
_KEPT_NAMES = [
    ("BDI_BACKEND_HOST", "0.0.0.0", "backend_host", "0.0.0.0"),
    ("BDI_BACKEND_PORT", "8199", "backend_port", 8199),
    ("BDI_MODELS_DIR", "/srv/models ñ", "models_dir", Path("/srv/models ñ")),
    ("BDI_CORESET_RATE", "0.1", "coreset_rate", 0.1),
    ("BDI_SCORE_PERCENTILE", "97", "score_percentile", 97.0),
    ("BDI_AREA_MM2_THR", "2.5", "area_mm2_thr", 2.5),
    ("BDI_MIN_OK_SAMPLES", "10", "min_ok_samples", 10),
    ("BDI_CACHE_MAX_ENTRIES", "7", "cache_max_entries", 7),
    (
        "BDI_CORS_ORIGINS",
        "http://a.example, http://b.example",
        "cors_origins",
        ("http://a.example", "http://b.example"),
    ),
    ("BDI_ALIGNED", "no", "aligned", "no"),
    ("BDI_REQUIRE_CUDA", "1", "require_cuda", True),
]


@pytest.mark.parametrize(("name", "text", "field", "value"), _KEPT_NAMES)
def test_the_environment_names_of_existing_installations_are_read(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str, value: object
) -> None:
    assert getattr(Settings(), field) != value
    monkeypatch.setenv(name, text)
    assert getattr(Settings(), field) == value


@pytest.mark.parametrize("mode", SCORE_MODES)
def test_a_score_mode_that_is_set_holds_before_and_after_the_first_calibration(mode: str, tmp_path: Path) -> None:
    options = build_service(Settings(score_mode=mode, models_dir=tmp_path)).defaults.options
    assert (options.rule.mode, options.first_mode) == (mode, mode)


def test_without_a_score_mode_the_ordered_percentile_comes_before_and_the_area_after(tmp_path: Path) -> None:
    options = build_service(Settings(models_dir=tmp_path)).defaults.options
    assert (options.rule.mode, options.rule.percentile, options.first_mode) == ("percentile", 99.0, "area")


@pytest.mark.parametrize("name", ["bdi_coreset_rate", "Bdi_Coreset_Rate"])
def test_the_case_of_a_name_does_not_matter(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0.5")
    assert Settings().coreset_rate == 0.5


def test_the_defaults_are_those_of_the_order() -> None:
    settings = Settings()
    assert settings.coreset_rate == 0.02
    assert settings.score_percentile == 99.0
    assert settings.area_mm2_thr == 1.0
    assert settings.score_mode == "auto"
    assert settings.blur_sigma == 1.0
    assert (settings.k, settings.seed) == (1, 0)
    assert (settings.backend_host, settings.backend_port) == ("127.0.0.1", 8000)
    assert settings.models_dir == Path("models")
    assert settings.cors_origins == ()
    assert settings.require_cuda is False


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        (" , ,", ()),
        ("*", ("*",)),
        ("http://a.example", ("http://a.example",)),
        ("http://a.example,http://b.example,", ("http://a.example", "http://b.example")),
    ],
)
def test_cors_origins_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("BDI_CORS_ORIGINS", text)
    assert Settings().cors_origins == origins


@pytest.mark.parametrize(
    ("text", "wanted"), [("1", True), ("true", True), ("True", True), ("0", False), ("false", False), ("no", False)]
)
def test_a_switch_may_be_spelled_in_several_ways(monkeypatch: pytest.MonkeyPatch, text: str, wanted: bool) -> None:
    monkeypatch.setenv("BDI_REQUIRE_CUDA", text)
    assert Settings().require_cuda is wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BDI_BACKEND_PORT", "65536"),
        ("BDI_BACKEND_PORT", "http"),
        ("BDI_CORESET_RATE", "0"),
        ("BDI_CORESET_RATE", "1.1"),
        ("BDI_CORESET_RATE", "nan"),
        ("BDI_SCORE_PERCENTILE", "0"),
        ("BDI_SCORE_PERCENTILE", "101"),
        ("BDI_AREA_MM2_THR", "-1"),
        ("BDI_AREA_MM2_THR", "inf"),
        ("BDI_MIN_OK_SAMPLES", "-1"),
        ("BDI_CACHE_MAX_ENTRIES", "0"),
        ("BDI_REQUIRE_CUDA", "maybe"),
        ("BDI_EXTRACTOR", "resnet"),
        ("BDI_DEVICE", "gpu"),
        ("BDI_INPUT_SIZE", "10"),
        ("BDI_SCALES", "0.5"),
        ("BDI_SCALES", "1.0,9"),
        ("BDI_SCALES", "one"),
        ("BDI_MAX_IMAGES", "0"),
    ],
)
def test_a_value_out_of_range_is_refused_and_its_setting_named(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ValidationError, match=name.removeprefix("BDI_").lower()):
        Settings()


@pytest.mark.parametrize(
    ("text", "scales"), [("1.0", (1.0,)), ("1,0.67", (1.0, 0.67)), ("1.0, 0.5 ,0.25", (1, 0.5, 0.25))]
)
def test_scales_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, text: str, scales: tuple[float, ...]) -> None:
    monkeypatch.setenv("BDI_SCALES", text)
    assert Settings().scales == scales


def test_names_of_other_programs_and_unknown_ones_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESET_RATE", "0.9")
    monkeypatch.setenv("BDI_GUI_LOG_DIR", "/tmp/log")
    assert Settings() == Settings(coreset_rate=0.02)


@pytest.mark.parametrize("text", ["filter-bank ", '"filter-bank"', " 'filter-bank' "])
def test_blanks_and_quotes_around_a_value_do_not_count(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BDI_EXTRACTOR", text)
    monkeypatch.setenv("BDI_MODELS_DIR", text)
    settings = Settings()
    assert (settings.extractor, settings.models_dir) == ("filter-bank", Path("filter-bank"))


def test_a_name_that_no_setting_has_is_logged_at_start_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("BDI_BLUR_SIGMAS", "2")
    monkeypatch.setenv("BDI_K", "2")
    with caplog.at_level("INFO"), TestClient(create_app(Settings(models_dir=tmp_path, extractor="filter-bank"))):
        pass
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if "no such setting" in line] == [
        "BDI_BLUR_SIGMAS is set, but there is no such setting: it has no effect. See docs/configuration.md."
    ]
    assert f"the models folder is {tmp_path}" in lines


@pytest.mark.parametrize(
    ("name", "text"), [("BDI_EXTRACTOR", "filter-bonk"), ("BDI_BLUR_SIGMA", "wide"), ("BDI_SCALES", "0.5")]
)
def test_serve_says_in_one_sentence_which_value_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    assert main(["serve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name} is '{text}', which cannot be used: ")


def test_the_environment_is_read_at_start_up_and_not_at_import(tmp_path: Path) -> None:
    script = (
        "import os, backend.app\n"
        f"os.environ['BDI_MODELS_DIR'] = {str(tmp_path / 'models')!r}\n"
        "os.environ['BDI_EXTRACTOR'] = 'filter-bank'\n"
        "from fastapi.testclient import TestClient\n"
        "with TestClient(backend.app.app) as client:\n"
        "    print(backend.app.app.state.settings.extractor, backend.app.app.state.settings.coreset_rate)\n"
    )
    environment = {**os.environ, "BDI_CORESET_RATE": "0.5"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["filter-bank", "0.5"], done.stderr


def test_a_wrong_value_stops_the_start_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "BDI_CORESET_RATE": "2", "BDI_BACKEND_PORT": "0"}
    command = [sys.executable, "-c", "import sys; from backend.cli import main; sys.exit(main(['serve']))"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "BDI_CORESET_RATE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("present", [True, False])
def test_cuda_is_required_only_where_it_is_said_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, present: bool
) -> None:
    cuda = SimpleNamespace(is_available=lambda: present)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    from fastapi.testclient import TestClient

    def start(required: bool) -> int:
        settings = Settings(models_dir=tmp_path / "models", require_cuda=required, extractor="filter-bank")
        with TestClient(create_app(settings)) as client:
            return int(client.get("/health").status_code)

    assert start(required=False) == 200
    if present:
        assert start(required=True) == 200
    else:
        with pytest.raises(RuntimeError, match="BDI_REQUIRE_CUDA"):
            start(required=True)


def test_the_settings_reach_the_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "BDI_MODELS_DIR": str(tmp_path / "artefacts"),
        "BDI_CORESET_RATE": "0.25",
        "BDI_SCORE_PERCENTILE": "95",
        "BDI_AREA_MM2_THR": "3.5",
        "BDI_MIN_OK_SAMPLES": "4",
        "BDI_BLUR_SIGMA": "2",
        "BDI_K": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with running(Settings(), FakeExtractor()) as client:
        fit = client.fit([png(1), png(2), png(3)]).ok()
        assert (fit["coreset_rate_requested"], fit["coreset_size"]) == (0.25, 48)
        params = client.infer(png(9)).ok()["params"]
        assert (params["score_percentile"], params["area_mm2_thr"], params["blur_sigma"]) == (95, 3.5, 2)
        assert params["k"] == 2
        for refused in (client.calibrate(), client.dataset("/calibrate_dataset")):
            assert "4" in refused.ok(422)["error"]
        client.fit([png(4)]).ok()
        assert client.calibrate().ok()["area_mm2_thr"] == 3.5
        assert client.dataset("/calibrate_dataset").ok()["score_percentile"] == 95
    assert (tmp_path / "artefacts" / "Inspection" / "inspection-1" / "memory.npz").is_file()


def test_the_cache_holds_no_more_models_than_it_may(tmp_path: Path) -> None:
    from backend.artifacts.model_key import ModelKey
    from backend.extractors.loader import ExtractorLoader
    from backend.services.fit_request import Upload
    from backend.wiring import build_service

    settings = Settings(models_dir=tmp_path / "models", cache_max_entries=2)
    service = build_service(settings, extractor=ExtractorLoader(lambda: (FakeExtractor(), None)))
    keys = [ModelKey(role_id="Inspection", roi_id=f"roi-{n}") for n in range(3)]
    try:
        for key in keys:
            service.fit_ok(key, [Upload(name="1.png", data=png(1)), Upload(name="2.png", data=png(2))], mm_per_px=0.2)
        first, second, third = (service.describe(key) for key in keys)
        assert service.describe(keys[2]) is third
        assert service.describe(keys[1]) is second
        assert service.describe(keys[0]) is not first  # it had to make room for the third
    finally:
        service.close()


def test_serve_binds_to_the_port_of_the_environment(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    chosen = {"models_dir": tmp_path / "models", "extractor": "filter-bank", "backend_port": port}
    command = ("-c", "import sys; from backend.cli import main; sys.exit(main(['serve']))")  # without --port
    environment = environment_with({**chosen, "backend_host": "localhost"})
    with ServiceProcess(tmp_path / "log", environment, command=command) as process:
        process.launch()
        process.port = port
        assert process.wait_until_ready()["model"] == "filter-bank"
        assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("text", ["http://line-pc", "line-pc:8000", "a b", "*.example", "line pc", "a/b"])
def test_a_host_is_a_name_without_scheme_and_port(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BDI_ALLOWED_HOSTS", text)
    with pytest.raises(ValidationError, match="allowed_hosts"):
        Settings()


@pytest.mark.parametrize("text", ["*", "proxy", "10.0.0.1:80", "10.0.0.0/33"])
def test_a_trusted_proxy_is_an_address_or_a_network(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BDI_TRUSTED_PROXIES", text)
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings()
