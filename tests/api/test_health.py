"""Health over HTTP: what the service says of itself, at once, whatever else it does; and the id of every request."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backend import __version__
from backend.errors import WeightsUnavailable
from backend.extractors.base import EngineFacts, FeatureExtractor
from backend.extractors.filter_bank import FilterBankFeatures
from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import pixel_digest
from backend.imaging.placement import Placement
from backend.services import storage_health
from tests.testkit.app import SMALL_INPUT_PX, Api, answer_of, error_of, ready, running_app
from tests.testkit.fakes import plate, plates

GUID = "8f0c6d0e-6d2e-4f0a-9a53-0d5f5c3f6b11"
PATIENCE_S = 120.0


class Gated:
    """The filter bank behind a gate: while it is shut, the device is busy."""

    def __init__(self) -> None:
        self._inner = FilterBankFeatures(input_size=SMALL_INPUT_PX)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.seen: list[str] = []
        self.name, self.extractor_id = self._inner.name, self._inner.extractor_id
        self.precision = self._inner.precision
        self.device, self.whitens, self.batch_size = self._inner.device, self._inner.whitens, self._inner.batch_size

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        return self._inner.placement(image_hw)

    def extract(self, image_bgr: Any) -> Any:
        return self.extract_batch([image_bgr])[0], self.placement(image_bgr.shape[:2]).grid_hw

    def extract_batch(self, images_bgr: Any) -> Any:
        self.seen += [pixel_digest(image) for image in images_bgr]
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        return self._inner.extract_batch(images_bgr)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("health") / "models") as started:
        _until(lambda: started.client.get("/health").json()["status"] != "starting")
        yield started


def test_health_answers_every_field(api: Api) -> None:
    answer = answer_of(api.client.get("/health", headers={"X-Request-Id": GUID}))
    expected = {"status": "ok", "device": "cpu", "model": "filter-bank", "version": __version__, "reason": None}
    assert {name: answer[name] for name in expected} == expected
    assert re.match(r"\d+\.\d+", answer["version"])
    assert answer["engine"] is None, "the filter bank has no network"
    assert answer["request_id"] == GUID


class WithEngine(Gated):
    """An extractor whose network an engine computes."""

    def engine_facts(self) -> EngineFacts:
        return EngineFacts(name="openvino", precision="bf16", origin="read from cache", warm_input_hw=((378, 378),))


def test_health_says_what_computes_the_network_and_for_which_sizes_it_is_warm(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", loader=ready(WithEngine())) as api:
        _until(lambda: api.client.get("/health").json()["status"] != "starting")
        assert answer_of(api.client.get("/health"))["engine"] == {
            "name": "openvino", "precision": "bf16", "origin": "read from cache", "warm_input_hw": [[378, 378]]
        }  # fmt: skip


def test_health_writes_nothing(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.client.get("/health"))
        assert not (tmp_path / "models" / "Inspection").exists()
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


# --- degraded and starting --------------------------------------------------------------------------------------------


def test_while_the_extractor_loads_health_says_starting_and_a_fit_waits_for_it(tmp_path: Path) -> None:
    loaded = threading.Event()

    def load() -> tuple[FeatureExtractor, None]:
        assert loaded.wait(PATIENCE_S)
        return FilterBankFeatures(input_size=SMALL_INPUT_PX), None

    with running_app(tmp_path / "models", loader=ExtractorLoader(load)) as api, ThreadPoolExecutor(1) as pool:
        try:
            assert answer_of(api.client.get("/health"))["status"] == "starting"
            fit = pool.submit(api.fit, plates([0, 1]))
            assert answer_of(api.client.get("/health"))["status"] == "starting"
        finally:
            loaded.set()
        assert answer_of(fit.result(PATIENCE_S))["n_ok_total"] == 2
        assert answer_of(api.client.get("/health"))["status"] == "ok"


def test_without_weights_health_is_degraded_and_fits_say_how_to_mend_it(tmp_path: Path) -> None:
    def load() -> tuple[FeatureExtractor, None]:
        raise WeightsUnavailable("The weights are not here. Set BDI_WEIGHTS, or let this machine reach the hub once.")

    with running_app(tmp_path / "models", loader=ExtractorLoader(load)) as api:
        response = api.fit(plates([0, 1]))
        assert "BDI_WEIGHTS" in error_of(response, 503, "weights_unavailable")["error"]
        health = answer_of(api.client.get("/health"))
        assert health["status"] == "degraded"
        assert "BDI_WEIGHTS" in health["reason"]
        error_of(api.infer(plates([0])[0]), 400, "memory_not_found")
        assert not list((tmp_path / "models").rglob("Inspection"))


def test_a_fitted_roi_cannot_be_inspected_without_an_extractor(tmp_path: Path) -> None:
    def load() -> tuple[FeatureExtractor, None]:
        raise WeightsUnavailable("The weights are not here. Set BDI_WEIGHTS, or let this machine reach the hub once.")

    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates([0, 1])))
    with running_app(tmp_path / "models", loader=ExtractorLoader(load)) as api:
        error_of(api.infer(plates([0])[0]), 503, "weights_unavailable")


def test_an_extractor_that_fails_in_an_unforeseen_way_says_nothing_internal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> tuple[FeatureExtractor, None]:
        raise RuntimeError("cudnn error 7 at /opt/secret/place")

    with running_app(tmp_path / "models", loader=ExtractorLoader(load)) as api:
        response = api.fit(plates([0, 1]))
        health = api.client.get("/health")
    error_of(response, 503, "weights_unavailable")
    assert answer_of(health)["status"] == "degraded"
    assert "log" in health.json()["reason"]
    assert "secret" not in response.text + health.text
    assert "cudnn error 7" in caplog.text


def test_another_extractor_than_the_one_hoped_for_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(_settings: object) -> FeatureExtractor:
        raise WeightsUnavailable("The weights are not here. Set BDI_WEIGHTS, or let this machine reach the hub once.")

    monkeypatch.setattr("backend.wiring._dinov2", no_weights)
    with running_app(tmp_path / "models", extractor="auto") as api:
        assert answer_of(api.fit(plates([0, 1])))["extractor"] == "filter-bank"
        health = answer_of(api.client.get("/health"))
    assert (health["status"], health["model"]) == ("degraded", "filter-bank")
    assert "BDI_WEIGHTS" in health["reason"]


# --- busy -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
def busy(tmp_path: Path, gated: Gated) -> Iterator[Api]:
    """A fitted ROI on a service whose queue holds one inspection beside the one that runs."""
    with running_app(tmp_path / "models", loader=ready(gated), queue_length=1) as started:
        answer_of(started.fit(plates([0, 1, 2])))
        gated.gate.clear()
        gated.entered.clear()
        yield started
        gated.gate.set()


def test_health_never_waits_behind_the_device(busy: Api, gated: Gated) -> None:
    with ThreadPoolExecutor(1) as pool:
        try:
            inspection = pool.submit(busy.infer, plates([9])[0])
            assert gated.entered.wait(PATIENCE_S)
            for _ in range(3):
                assert answer_of(busy.client.get("/health"))["status"] == "ok"
            assert not inspection.done()
        finally:
            gated.gate.set()
        answer_of(inspection.result(PATIENCE_S))


def test_more_inspections_than_the_queue_holds_are_sent_back_with_a_time_to_retry(busy: Api, gated: Gated) -> None:
    with ThreadPoolExecutor(8) as pool:
        try:
            waiting = [pool.submit(busy.infer, plates([9])[0]) for _ in range(8)]
            _until(lambda: sum(future.done() for future in waiting) >= 6)
        finally:
            gated.gate.set()
        responses = [future.result(PATIENCE_S) for future in waiting]
    refused = [response for response in responses if response.status_code != 200]
    assert len(refused) == 6, "one runs, one waits"
    for response in refused:
        error_of(response, 503, "queue_full")
        assert int(response.headers["Retry-After"]) >= 1
    scores = {answer_of(response)["score"] for response in responses if response.status_code == 200}
    assert len(scores) == 1
    answer_of(busy.infer(plates([9])[0]))


def test_an_inspection_gets_in_between_the_images_of_a_fit(busy: Api, gated: Gated) -> None:
    gated.seen.clear()
    with ThreadPoolExecutor(4) as pool:
        try:
            fit = pool.submit(busy.fit, plates(range(20, 26)))
            assert gated.entered.wait(PATIENCE_S)  # the first image of the fit is on the device
            inspections = [pool.submit(busy.infer, plates([9])[0]) for _ in range(3)]
            _until(lambda: any(inspection.done() for inspection in inspections))  # one is refused: the others wait
        finally:
            gated.gate.set()
        answer_of(fit.result(PATIENCE_S))
        assert sorted(inspection.result(PATIENCE_S).status_code for inspection in inspections) == [200, 200, 503]
    assert [digest == pixel_digest(plate(9)) for digest in gated.seen] == [False, True, True, *[False] * 5]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_health_names_the_models_folder_to_whoever_may_know_it(tmp_path: Path) -> None:
    inspect, admin = "inspect-0123456789abc", "admin-0123456789abcdef"
    with running_app(tmp_path / "open") as api:
        for address, known in (("http://127.0.0.1:8000", str(tmp_path / "open")), ("http://192.168.0.7:8000", None)):
            assert answer_of(api.client.get(f"{address}/health"))["models_dir"] == known
    with running_app(tmp_path / "keys", api_keys=f"inspect:{inspect},admin:{admin}") as api:
        for key, known in (
            (admin, str(tmp_path / "keys")),
            (inspect, None),
            ("nobody-0123456789abc", None),
            ("", None),
        ):
            for address in ("http://127.0.0.1:8000", "http://192.168.0.7:8000"):
                health = answer_of(api.client.get(f"{address}/health", headers={"X-API-Key": key} if key else {}))
                assert health["models_dir"] == known


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "Read-only"), (errno.ENOSPC, "No space"), (errno.EACCES, "Permission")]
)
def test_health_says_that_nothing_can_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates([0, 1])))
        assert answer_of(api.client.get("/health"))["status"] == "ok"
        with monkeypatch.context() as disk:
            disk.setattr(storage_health, "FRESH_S", 0.0)
            real = os.open

            def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
                if str(path).startswith(str(api.models)) and flags & os.O_CREAT:
                    raise OSError(number, os.strerror(number))
                return real(path, flags, *arguments, **options)

            disk.setattr(os, "open", refuse)
            told = answer_of(api.client.get("/health"))
            assert told["status"] == "degraded"
            assert words in told["reason"]
            assert str(tmp_path) not in told["reason"]
        assert answer_of(api.client.get("/health"))["status"] == "ok"


def test_health_answers_while_the_disk_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers_again = threading.Event()
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates([0, 1])))
        real = api.client.app.state.service.store.folder.check  # type: ignore[attr-defined]

        def hang() -> None:
            assert answers_again.wait(PATIENCE_S)
            real()

        monkeypatch.setattr(storage_health, "PATIENCE_S", 0.05)
        monkeypatch.setattr(api.client.app.state.service.store.folder, "check", hang)  # type: ignore[attr-defined]
        try:
            for _ in range(3):
                told = answer_of(api.client.get("/health"))
                assert told["status"] == "degraded"
                assert "has not answered" in told["reason"]
            assert sum(thread.name == "storage-health" for thread in threading.enumerate()) == 1
        finally:
            answers_again.set()
        _until(lambda: answer_of(api.client.get("/health"))["status"] == "ok")
