"""What the demo shows: how many parts the service judges right with its default settings and the filter bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from backend.demo.api import Api
from backend.demo.demo_parts import rendered_parts
from backend.demo.inspected import Tally, tally
from backend.demo.service_process import PLAIN_UVICORN, ServiceProcess, environment_with
from backend.demo.tour import take_tour


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Good parts that passed, defective parts that were found, and those of them with a region on the defect."""

    passed: int
    found: int
    on_defect: int


# Of 8 good and 6 defective parts that are counted.
AS_SHOWN = Counts(passed=8, found=6, on_defect=6)
# The least over ten other seeds together: of 80 good and 60 defective parts. 23 parts promise that 77 of 80 pass.
OVER_TEN_SEEDS = Counts(passed=78, found=57, on_defect=57)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("demo")
    environment = environment_with({"models_dir": folder / "models", "extractor": "filter-bank"})
    with ServiceProcess(folder / "server.log", environment, command=PLAIN_UVICORN) as process:
        process.launch()
        process.wait_until_ready()
        yield process


def _shown(server: ServiceProcess, seed: int) -> Tally:
    """Return how many parts of a seed were judged right; its ROI is its own, so this is the first calibration."""
    with server.client() as client:
        return tally(take_tour(Api(client, rendered_parts(30, 0.2, seed=seed), roi_id=f"seed-{seed}")).items)


@pytest.mark.slow
def test_the_demo_shows_what_it_is_said_to_show(server: ServiceProcess) -> None:
    found = _shown(server, 0)
    assert (found.n_good, found.n_defective, found.n_aside) == (8, 6, 2)
    assert Counts(passed=found.n_passed, found=found.n_found, on_defect=found.n_on_defect) == AS_SHOWN


@pytest.mark.slow
def test_over_ten_other_seeds_the_demo_does_not_fall_short(server: ServiceProcess) -> None:
    found = [_shown(server, seed) for seed in range(1, 11)]
    assert (sum(one.n_good for one in found), sum(one.n_defective for one in found)) == (80, 60)
    assert sum(one.n_passed for one in found) >= OVER_TEN_SEEDS.passed
    assert sum(one.n_found for one in found) >= OVER_TEN_SEEDS.found
    assert sum(one.n_on_defect for one in found) >= OVER_TEN_SEEDS.on_defect
