"""A setting that the service cannot start with: one sentence that names it, exit status 2, no traceback."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from backend.cli import main
from backend.settings import Settings
from backend.wiring import folder_faults

SECRET = "admin-0123456789abcdef"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("BDI_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BDI_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("BDI_EXTRACTOR", "filter-bank")
    monkeypatch.setenv("BDI_BACKEND_PORT", "0")


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Return the one sentence that a command ends with."""
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(".")
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize(
    "keys", [f'["admin:{SECRET}"]', f'{{"admin":"{SECRET}"}}', SECRET, "admin:short", f"admin:{SECRET},", "[]"]
)
def test_malformed_keys_end_the_start_and_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keys: str
) -> None:
    monkeypatch.setenv("BDI_API_KEYS", keys)
    line = refused(capsys, "serve")
    assert line.startswith("BDI_API_KEYS: ")
    assert SECRET not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BDI_CORS_ORIGINS", "panel"),
        ("BDI_CORS_ORIGINS", '["http://panel"]'),
        ("BDI_CORS_ORIGINS", "http://panel/page"),
        ("BDI_EXTRACTOR", "resnet"),
        ("BDI_BACKEND_PORT", "http"),
        ("BDI_LOG_LEVEL", "loud"),
        ("BDI_MAX_BODY_MB", ""),
        ("BDI_BACKEND_HOST", "no such machine"),
        ("BDI_BACKEND_HOST", "192.0.2.1"),
    ],
)
def test_a_value_that_cannot_be_used_ends_the_start_with_the_name_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    line = refused(capsys, "serve")
    assert line.startswith(name)


def test_a_port_that_is_taken_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("BDI_BACKEND_PORT", str(taken.getsockname()[1]))
        assert "BDI_BACKEND_PORT" in (line := refused(capsys, "serve"))
    assert "address already in use" in line


@pytest.mark.parametrize("command", [("serve",), ("refit", "--all")])
def test_a_models_folder_that_is_none_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "models"):
        monkeypatch.setenv("BDI_MODELS_DIR", str(path))
        assert refused(capsys, *command).startswith(f"BDI_MODELS_DIR is {str(path)!r}, which cannot be used: ")


def test_a_models_folder_that_may_not_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("backend.wiring.TemporaryFile", refuse)
    (sentence,) = folder_faults(Settings(models_dir=tmp_path))
    assert sentence == f"BDI_MODELS_DIR is {str(tmp_path)!r}, which cannot be used: permission denied."
    assert list(folder_faults(Settings(models_dir=tmp_path / "new"))) == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", [("serve",), ("refit", "--all")])
def test_weights_that_are_not_there_end_the_start_where_nothing_takes_their_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("BDI_EXTRACTOR", "dinov2")
    monkeypatch.setenv("BDI_WEIGHTS", str(tmp_path / "none.safetensors"))
    assert refused(capsys, *command).startswith("BDI_WEIGHTS is ")


def test_a_device_that_is_not_there_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BDI_EXTRACTOR", "dinov2")
    monkeypatch.setenv("BDI_DEVICE", "cuda:999")
    assert refused(capsys, "serve").startswith("BDI_DEVICE is 'cuda:999', which cannot be used: ")


def test_a_log_file_that_cannot_be_written_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("BDI_LOG_FILE", str(tmp_path))
    assert refused(capsys, "serve").startswith("BDI_LOG_FILE is ")


@pytest.mark.parametrize("command", [("verify",), ("backup", "out.zip"), ("restore", "in.zip"), ("refit", "--all")])
def test_every_command_names_a_bad_setting_and_otherwise_the_folder_that_it_works_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDI_MODELS_DIR", "models")
    main(command)
    assert f"the models folder is {tmp_path / 'models'}" in capsys.readouterr().err.splitlines()
    monkeypatch.setenv("BDI_BLUR_SIGMA", "wide")
    assert refused(capsys, *command).startswith("BDI_BLUR_SIGMA is 'wide', which cannot be used: ")


def test_several_are_named_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BDI_K", "0")
    monkeypatch.setenv("BDI_SEED", "-1")
    assert main(["serve"]) == 2
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["BDI_SEED", "BDI_K"]


def test_origins_are_compared_as_browsers_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDI_CORS_ORIGINS", "\"http://Panel:8080/\", 'https://b.example' ,*")
    assert Settings().cors_origins == ("http://panel:8080", "https://b.example", "*")
