"""What FAISS and scikit-learn are used for; that their searches are exact stands in ``test_nearest``."""

import importlib.util
import sys

import numpy as np
import pytest

from backend.memory_bank.index import build_index, faiss_bytes

MEMORY = np.random.default_rng(8).standard_normal((50, 12), dtype=np.float32)


@pytest.mark.parametrize("backend", ["faiss", "sklearn"])
def test_a_backend_that_is_not_installed_is_an_import_error(monkeypatch, backend):
    monkeypatch.setitem(sys.modules, backend, None)  # an import of it fails now
    monkeypatch.setitem(sys.modules, f"{backend}.neighbors", None)
    with pytest.raises(ImportError):
        build_index(MEMORY, backend=backend)


def test_without_faiss_the_search_works_and_no_index_file_is_made(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find_spec(name))
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert build_index(MEMORY).knn(MEMORY).tolist() == [0] * 50
    assert faiss_bytes(MEMORY) is None


def test_the_serialised_index_is_a_flat_l2_index_over_the_memory():
    import faiss

    data = faiss_bytes(MEMORY)
    index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    assert isinstance(index, faiss.IndexFlatL2)
    assert (index.ntotal, index.d) == (50, 12)
    np.testing.assert_array_equal(index.reconstruct_n(0, 50), MEMORY)
    assert faiss_bytes(MEMORY.copy()) == data
