"""How exact quantiles are, and that sketches add up."""

from __future__ import annotations

import numpy as np
import pytest

from backend.history.sketch import IMAGE_SERIES, SERIES, Sketch
from backend.memory_bank.image_statistics import NAMES


def test_every_statistic_of_an_image_has_a_series() -> None:
    assert set(NAMES) == set(IMAGE_SERIES)


@pytest.mark.parametrize(
    ("name", "error"), [("score", 0.005), ("ratio", 0.005), ("level", 0.02), ("layout_tone", 0.02)]
)
@pytest.mark.parametrize("q", [0.01, 0.5, 0.95, 1.0])
def test_a_quantile_is_as_exact_as_it_says(name: str, error: float, q: float) -> None:
    values = np.random.default_rng(0).lognormal(-1, 1.5, 999)
    if name == "layout_tone":
        values = values - 0.5
    sketch = Sketch.of([(SERIES[name], value) for value in values])
    expected = np.sort(values)[int(np.ceil(q * len(values))) - 1]
    assert sketch.quantiles(q)[name] == pytest.approx(expected, rel=error + 1e-9)
    assert sketch.count(name) == 999


def test_sketches_add_up_and_come_back_from_their_bytes() -> None:
    rng = np.random.default_rng(0)
    values = [(int(rng.integers(len(SERIES))), float(rng.standard_normal())) for _ in range(1000)]
    parts = [Sketch.of(values[n : n + 100]) for n in range(0, 1000, 100)]
    summed, whole = Sketch.sum(Sketch.from_bytes(part.to_bytes()) for part in parts), Sketch.of(values)
    assert (summed.bins == whole.bins).all()
    assert (summed.counts == whole.counts).all()


def test_zero_and_what_is_not_finite() -> None:
    sketch = Sketch.of([(0, 0.0), (0, 0.0), (0, float("nan")), (0, float("inf")), (1, 1e300)])
    assert (sketch.count("score"), sketch.quantiles(0.5)["score"]) == (2, 0.0)
    assert Sketch.of([]).quantiles(0.5) == {} == Sketch.sum([]).quantiles(0.5)
    with pytest.raises(ValueError, match="no sketch"):
        Sketch.from_bytes(b"none")
