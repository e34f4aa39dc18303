"""The service where only the project's own dependencies are installed, and none of its extras."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.testkit.app import REPOSITORY

_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "openvino", "huggingface_hub", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())

import time
from pathlib import Path
from tests.testkit.app import answer_of, error_of, running_app
from tests.testkit.fakes import plates

def health_once_loaded(api):
    while (health := answer_of(api.client.get("/health")))["status"] == "starting":
        time.sleep(0.01)
    return health

models = Path(sys.argv[1])
"""


def run(models: Path, program: str) -> None:
    """Run a program in a process that cannot import the extras; an assertion that fails there fails here."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT + textwrap.dedent(program), str(models)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_with_the_filter_bank_it_fits_calibrates_and_inspects(tmp_path: Path) -> None:
    program = """
        with running_app(models, extractor="filter-bank") as api:
            assert answer_of(api.fit(plates(range(4))))["n_ok_total"] == 4
            threshold = answer_of(api.calibrate())["threshold"]
            found = answer_of(api.infer(plates([9])[0]))
            assert found["threshold"] == threshold and found["decision"] in ("ok", "ng")
            assert health_once_loaded(api)["status"] == "ok"
    """
    run(tmp_path / "models", program)


def test_with_dinov2_it_starts_and_says_what_to_install(tmp_path: Path) -> None:
    program = """
        with running_app(models, extractor="dinov2") as api:
            health = health_once_loaded(api)
            assert health["status"] == "degraded"
            assert 'pip install ".[torch]"' in health["reason"], health
            refused = error_of(api.fit(plates(range(2))), 503, "weights_unavailable")
            assert refused["error"] == health["reason"]
        try:
            with running_app(models, require_cuda=True):
                raise AssertionError("it started")
        except RuntimeError as error:
            assert 'pip install ".[torch]"' in str(error)
    """
    run(tmp_path / "models", program)


def test_with_auto_the_filter_bank_takes_its_place_and_the_reason_is_given(tmp_path: Path) -> None:
    program = """
        with running_app(models, extractor="auto") as api:
            health = health_once_loaded(api)
            assert (health["status"], health["model"]) == ("degraded", "filter-bank")
            assert 'pip install ".[torch]"' in health["reason"], health
            answer_of(api.fit(plates(range(2))))
    """
    run(tmp_path / "models", program)
