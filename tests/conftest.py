"""Fixtures that many tests share. Everything is written below pytest's own temporary folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from backend.artifacts.model_key import ModelKey
from backend.extractors.device_queue import DeviceQueue
from backend.extractors.loader import ExtractorLoader
from backend.services.inspection import InspectionService
from backend.settings import Settings
from backend.storage import ArtefactStore
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor

# The same examples in every run; no deadline, because the machine may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("repeatable")


@pytest.fixture
def key() -> ModelKey:
    return ModelKey(role_id="Inspection", roi_id="inspection-1")


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "models")


@pytest.fixture
def extractor() -> FakeExtractor:
    return FakeExtractor()


@pytest.fixture
def device() -> Iterator[DeviceQueue]:
    queue = DeviceQueue(max_waiting=8)
    yield queue
    queue.close()


@pytest.fixture
def service(tmp_path: Path, extractor: FakeExtractor) -> Iterator[InspectionService]:
    """A service of default settings over the fake extractor, in a folder of its own."""
    made = build_service(Settings(models_dir=tmp_path / "models"), extractor=ExtractorLoader(lambda: (extractor, None)))
    yield made
    made.close()


@pytest.fixture
def services(tmp_path):
    """Makes services of their own extractor in folders of their own."""
    made = []

    def make(models: str = "models", extractor: FakeExtractor | None = None):
        loader = ExtractorLoader(lambda: (extractor or FakeExtractor(), None))
        service = build_service(Settings(models_dir=tmp_path / models), extractor=loader)
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()
