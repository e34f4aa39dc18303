import threading

import pytest

from backend.errors import InspectionError, WeightsUnavailable
from backend.extractors.loader import ExtractorLoader, ExtractorState
from tests.testkit.fakes import FakeExtractor


def test_nothing_is_loaded_before_somebody_asks():
    def make():
        raise AssertionError("loaded")

    assert ExtractorLoader(make).state == ExtractorState(status="starting")


def test_the_state_can_be_asked_while_the_extractor_is_being_loaded():
    go, extractor = threading.Event(), FakeExtractor()

    def make():
        assert go.wait(10)
        return extractor, None

    loader = ExtractorLoader(make)
    loader.start()
    assert loader.state.status == "starting"
    waiting = threading.Thread(target=loader.get)
    waiting.start()
    go.set()
    waiting.join(10)
    assert loader.get() is extractor
    assert loader.state == ExtractorState(status="ok", extractor=extractor)


def test_the_extractor_is_made_once_whoever_asks_and_how_often():
    made = []

    def make():
        made.append(1)
        return FakeExtractor(), None

    loader = ExtractorLoader(make)
    threads = [threading.Thread(target=loader.get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    loader.start()
    assert made == [1]


def test_an_extractor_that_is_not_the_one_hoped_for_works_and_says_why():
    extractor = FakeExtractor()
    loader = ExtractorLoader(lambda: (extractor, "The filter bank runs in place of DINOv2."))
    assert loader.get() is extractor
    assert loader.state == ExtractorState(
        status="degraded", extractor=extractor, reason="The filter bank runs in place of DINOv2."
    )


@pytest.mark.parametrize(
    ("failure", "error", "reason"),
    [
        (WeightsUnavailable("Set BDI_WEIGHTS."), WeightsUnavailable, "Set BDI_WEIGHTS."),
        (InspectionError("Another engine is needed."), InspectionError, "Another engine is needed."),
        (RuntimeError("/secret/path: CUDA error 700"), WeightsUnavailable, "the service's log says why"),
        (ImportError("no module named torch"), WeightsUnavailable, "the service's log says why"),
    ],
)
def test_everyone_who_asks_gets_the_failure_which_holds_nothing_internal(failure, error, reason, caplog):
    def make():
        raise failure

    loader = ExtractorLoader(make)
    for _ in range(2):
        with pytest.raises(error) as raised:
            loader.get()
        assert type(raised.value) is error
        assert reason in raised.value.sentence
    assert loader.state.status == "degraded"
    assert loader.state.extractor is None
    assert reason in loader.state.reason
    assert "/secret" not in loader.state.reason + raised.value.sentence
    assert str(failure) in caplog.text
