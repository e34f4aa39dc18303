"""The search on the extractor's device, run on the processor's tensors: the same distances as `nearest`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from backend.extractors import device_search  # noqa: E402
from backend.extractors.device_search import DeviceRows, DeviceSearch  # noqa: E402
from backend.memory_bank.index import build_index  # noqa: E402
from backend.memory_bank.windows import LearnedCells, WindowRows, nearest_in_windows  # noqa: E402
from backend.services.fit_request import Upload  # noqa: E402
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image  # noqa: E402


def unit_rows(n: int, d: int = 48, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


MEMORY = unit_rows(500)
KINDS = {
    "noise": (unit_rows(60, seed=1), MEMORY),
    "in the memory": (MEMORY[100:160], MEMORY),
    "each vector many times": (unit_rows(60, seed=1), MEMORY[np.arange(500) % 7]),
    "a tight cluster": (MEMORY[:1] + 1e-3 * unit_rows(60, seed=1), MEMORY[:1] + 1e-3 * unit_rows(500, seed=2)),
    "few vectors": (unit_rows(60, seed=1), MEMORY[:5]),
}


def search() -> DeviceSearch:
    return DeviceSearch(torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_distances_are_those_of_the_search_on_the_processor(kind, k):
    query, memory = KINDS[kind]
    distances, indices = search().nearest(torch.tensor(query), "memory", memory, k)
    assert distances.dtype == np.float32
    np.testing.assert_allclose(distances, build_index(memory).search(query, k)[0], rtol=2e-6, atol=1e-9)
    measured = np.linalg.norm(query[:, None] - memory[indices], axis=2)
    np.testing.assert_allclose(measured, distances, rtol=2e-6, atol=1e-9)


def test_the_nearest_is_found_among_more_equals_than_there_are_candidates():
    # By products all of these look alike: they differ in the eighth digit. One of them is the query itself.
    memory = np.repeat(MEMORY[:1], 400, axis=0)
    memory[:, 0] += np.linspace(0, 3e-7, 400, dtype=np.float32)
    query = memory[333:334]
    distances, indices = search().nearest(torch.tensor(query), "memory", memory, 1)
    assert distances.tolist() == [[0.0]]
    np.testing.assert_array_equal(memory[indices[0]], query)  # of several that are equal in float32


def test_in_parts_the_distances_are_the_same(monkeypatch):
    query, memory = KINDS["noise"]
    whole = search().nearest(torch.tensor(query), "memory", memory, 2)
    monkeypatch.setattr(device_search, "_NUMBERS_AT_ONCE", 5000)
    np.testing.assert_array_equal(search().nearest(torch.tensor(query), "memory", memory, 2), whole)


def test_memories_stay_on_the_device_until_others_need_the_place(monkeypatch):
    monkeypatch.setattr(device_search, "_KEPT_NUMBERS", 2 * MEMORY.size)
    on_device, query = search(), torch.tensor(MEMORY[:3])
    for name in ("a", "b", "a", "c"):
        on_device.nearest(query, name, MEMORY, 1)
    assert list(on_device._indices) == ["a", "c"]
    monkeypatch.setattr(device_search, "_KEPT_NUMBERS", 1)
    on_device.nearest(query, "d", MEMORY, 1)
    assert list(on_device._indices) == ["d"]  # one is always kept: the one that is asked


def test_rows_copy_themselves_to_numpy_and_know_their_shape():
    rows = DeviceRows(torch.tensor(MEMORY[:9]), search())
    assert rows.shape == (9, 48)
    np.testing.assert_array_equal(np.asarray(rows), MEMORY[:9])
    np.testing.assert_allclose(rows.nearest("memory", MEMORY, 1)[0], np.zeros((9, 1)), atol=1e-7)


class OnDevice(FakeExtractor):
    """Leaves the rows of inspections where a device would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.device_search, self.left_there = search(), 0

    def extract_on_device(self, images_bgr):
        rows = self.extract_batch(images_bgr)
        self.left_there += len(rows)
        return [DeviceRows(torch.tensor(each), self.device_search) for each in rows]


def test_an_inspection_searches_on_the_device_and_finds_what_the_processor_finds(services, key):
    extractor = OnDevice()
    there, here = services("there", extractor=extractor), services("here")
    parts = [(defective_image(50), "new"), (good_image(2), "leave_one_out"), (good_image(60), "new")]
    for service in (there, here):
        uploads = [Upload(name=str(seed), data=encoded(good_image(seed))) for seed in range(4)]
        service.fit_ok(key, uploads, mm_per_px=0.2)
        service.calibrate(key)
    for image, scoring in parts:
        found, expected = (service.infer(key, encoded(image), mm_per_px=0.2) for service in (there, here))
        assert found.params["scoring"] == scoring
        assert found.score == pytest.approx(expected.score, rel=1e-5)
        np.testing.assert_allclose(found.map, expected.map, atol=1e-5)
        assert found.decision == expected.decision
    assert extractor.left_there == len(parts)
    assert len(extractor.device_search._indices) == 1


@pytest.mark.parametrize("offset", [(0, 0), (1, -2)])
def test_windows_are_searched_as_on_the_processor(offset):
    rng = np.random.default_rng(0)
    mask = rng.random(6 * 8) > 0.2
    cells = LearnedCells(grid_hw=(6, 8), mask_cells=mask)
    rows = rng.integers(-127, 128, (int(mask.sum()), 5, 16)).astype(np.int8)
    step, query = rng.uniform(0.01, 0.02, 16).astype(np.float32), rng.standard_normal((len(rows), 16), np.float32)
    on_device = DeviceRows(torch.tensor(MEMORY[:1]), search())
    held = WindowRows(rows=rows, step=step, cells=cells)
    found = on_device.window_search("memory")(query, held, offset)
    expected = nearest_in_windows(query, held, offset)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    there = np.isfinite(expected[0])
    np.testing.assert_array_equal(found[1][there], expected[1][there])


def test_local_banks_stay_on_the_device_until_others_need_the_place(monkeypatch):
    monkeypatch.setattr(device_search, "_KEPT_NUMBERS", 2 * 4 * 3 * 2)
    cells = LearnedCells(grid_hw=(2, 2), mask_cells=np.ones(4, bool))
    on_device, query = search(), np.zeros((4, 2), np.float32)
    held = WindowRows(rows=np.ones((4, 3, 2), np.int8), step=np.ones(2, np.float32), cells=cells)
    for name in ("a", "b", "a", "c"):
        on_device.nearest_in_windows(name, query, held, (0, 0))
    assert list(on_device._window_indices) == ["a", "c"]
