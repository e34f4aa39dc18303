"""A real server over a fake extractor for each module, and clients of ROIs that no other test uses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from backend.settings import Settings
from tests.testkit.client import Client, png
from tests.testkit.fakes import FakeExtractor, defective_image, encoded
from tests.testkit.server import running

_UNUSED_ROI = (f"roi-{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service on sockets of this process; at most 40 images a call."""
    settings = Settings(models_dir=tmp_path_factory.mktemp("server") / "models", max_images=40)
    with running(settings, FakeExtractor()) as client:
        yield client


@pytest.fixture
def client(server: Client) -> Client:
    """A client of a ROI that no other test uses."""
    return server.at(next(_UNUSED_ROI))


@pytest.fixture
def fitted(client: Client) -> Client:
    """A client of a ROI with five learned good images and one bad one."""
    client.upload("ok", [png(seed) for seed in range(5)], [{"mm_per_px": 0.2}] * 5).ok()
    client.upload("ng", [encoded(defective_image(99))], [{"mm_per_px": 0.2}]).ok()
    client.fit(use_dataset=True).ok()
    return client


@pytest.fixture(scope="module")
def ready(server: Client) -> Client:
    """A client of a fitted and calibrated ROI with images of both classes; tests leave it as it is."""
    ready = server.at("ready")
    ready.upload("ok", [png(seed) for seed in range(4)], [{"mm_per_px": 0.2}] * 4).ok()
    ready.upload("ng", [encoded(defective_image(9))], [{"mm_per_px": 0.2}]).ok()
    ready.fit(use_dataset=True).ok()
    ready.calibrate(area_mm2_thr=0.1).ok()
    return ready


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the operation in the id of each test that Schemathesis makes: tests of one id are run once by xdist."""
    for item in items:
        if getattr(item, "operation_label", None) and item.parent is not None:
            item._nodeid = f"{item.parent.nodeid}::{item.name}"
