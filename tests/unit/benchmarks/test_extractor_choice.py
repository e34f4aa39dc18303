import sys
from types import ModuleType

import pytest

from benchmarks.extractor_choice import ExtractorError, load_extractor, takes_input_size
from tests.testkit.fakes import FakeExtractor


class TakesNothing(FakeExtractor):
    def __init__(self) -> None:
        super().__init__(input_size=40)


class NeedsMore(FakeExtractor):
    def __init__(self, weights: str) -> None:
        super().__init__()


class NoExtractor:
    name = "half of one"

    def placement(self, image_hw):
        return image_hw


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the name ``of_somebody`` that holds the classes above."""
    module = ModuleType("of_somebody")
    for cls in (FakeExtractor, TakesNothing, NeedsMore, NoExtractor):
        setattr(module, cls.__name__, cls)
    module.number = 3
    monkeypatch.setitem(sys.modules, "of_somebody", module)
    return "of_somebody"


def test_a_class_is_made_with_what_its_signature_takes(named):
    assert load_extractor(f"{named}:FakeExtractor", input_size=96, resize="square").extractor_id.startswith(
        "fake-a|96/8"
    )
    assert load_extractor(f"{named}:TakesNothing", input_size=96, resize="aspect").extractor_id.startswith(
        "fake-a|40/8"
    )


def test_whether_a_size_of_the_input_has_an_effect_is_known_beforehand(named):
    assert takes_input_size("filter-bank")
    assert takes_input_size(f"{named}:FakeExtractor")
    assert not takes_input_size(f"{named}:TakesNothing")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("dino", "name filter-bank or dinov2, or a class as package.module:Class"),
        (":FakeExtractor", "name filter-bank or dinov2, or a class as package.module:Class"),
        ("not.there:It", "not.there cannot be imported: No module named 'not'"),
        ("of_somebody:It", "of_somebody has no class It"),
        ("of_somebody:number", "of_somebody has no class number"),
        ("of_somebody:NeedsMore", "it cannot be made: .*missing 1 required positional argument: 'weights'"),
        (
            "of_somebody:NoExtractor",
            "it lacks extractor_id, precision, device, whitens, batch_size, extract, extract_batch; FeatureExtractor",
        ),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_with_the_reason(named, spec, sentence):
    with pytest.raises(ExtractorError, match=rf"^--extractor {spec}: {sentence}"):
        load_extractor(spec, input_size=96, resize="aspect")
