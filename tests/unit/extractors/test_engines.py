"""The compute engines against the plain one, what OpenVINO's cache survives, and which engine is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

import tests.testkit.dinov2_files as files
from backend.artifacts.files import sync_tree
from backend.errors import Unavailable
from backend.extractors import openvino_engine
from backend.extractors.base import Precision
from backend.extractors.embedder import Engine, PatchEmbedder
from backend.extractors.engines import TorchEngine, choose_engine, resolve_device
from backend.extractors.openvino_engine import OpenVinoEngine, OpenVinoUnusable
from backend.extractors.weights import WeightsFile, load_backbone

try:
    CAPABILITIES = openvino_engine._import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
except OpenVinoUnusable as error:
    pytest.skip(error.sentence, allow_module_level=True)

INPUT_HW = (112, 84)
needs_bf16 = pytest.mark.skipif("BF16" not in CAPABILITIES, reason="this processor has no bf16")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> PatchEmbedder:
    path = files.both_forms(tmp_path_factory.getbasetemp()).timm
    return PatchEmbedder(load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="file")), (9, 11))


@pytest.fixture(scope="module")
def reference(embedder: PatchEmbedder) -> TorchEngine:
    return TorchEngine(embedder)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all tests may read: what is converted is the same graph each time."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_openvino(embedder: PatchEmbedder, cache_dir: Path) -> Callable[..., OpenVinoEngine]:
    def make(**changes: Any) -> OpenVinoEngine:
        return OpenVinoEngine(
            embedder, **{"precision": "fp32", "weights_digest": "w", "cache_dir": cache_dir, **changes}
        )

    return make


def images(count: int = 1, input_hw: tuple[int, int] = INPUT_HW, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random images [count, h, w, 3] uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, input_hw[0] // 14, input_hw[1] // 14, 3))
    fine = coarse.repeat(14, axis=1).repeat(14, axis=2)
    return (fine * 0.8 + np.random.default_rng(seed).integers(0, 50, fine.shape)).astype(np.uint8)


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    return (first * second).sum(axis=-1)


def nearest_distances(engine: Engine) -> NDArray[np.float32]:
    """Euclidean distance of each patch of one image to the nearest patch of four others: [N]."""
    memory = np.concatenate([engine.embed(images(seed=seed))[0] for seed in range(1, 5)])
    query = engine.embed(images(seed=0))[0]
    return np.sqrt(np.maximum(2 - 2 * (query @ memory.T).max(axis=1), 0))


# Numbers


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_pytorch_in_half_precision_stays_near_fp32(
    precision: Precision, embedder: PatchEmbedder, reference: TorchEngine
) -> None:
    half = TorchEngine(embedder, precision=precision).embed(images(2))
    assert half.dtype == np.float32
    nearness = cosines(half, reference.embed(images(2)))
    assert nearness.min() > 0.9995
    assert nearness.min() < 0.9999999  # Else it was fp32 that computed.
    np.testing.assert_allclose(np.linalg.norm(half, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("input_hw", [INPUT_HW, (84, 112), (70, 70)])
def test_openvino_in_fp32_equals_pytorch_at_every_input_size(
    input_hw: tuple[int, int], make_openvino: Callable[..., OpenVinoEngine], reference: TorchEngine
) -> None:
    batch = images(2, input_hw)
    embeddings = make_openvino().embed(batch)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (2, input_hw[0] // 14 * (input_hw[1] // 14), 768)
    np.testing.assert_allclose(embeddings, reference.embed(batch), atol=2e-6)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@torch.no_grad()
def test_what_openvino_converts_is_timms_network_with_and_without_registers(name: str) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(name, pretrained=False, num_classes=0, depth=3, dynamic_img_size=True)
    network = PatchEmbedder(backbone, (0, 2)).eval()
    for parameter in network.parameters():  # Fresh layer scales are so small that a missing block would not show.
        parameter.copy_(0.05 * torch.randn_like(parameter))
    given_positions = openvino_engine._OpenSizes(network)
    found = given_positions(torch.from_numpy(images()), given_positions.positions(INPUT_HW))
    torch.testing.assert_close(found, network(torch.from_numpy(images())), atol=1e-6, rtol=0)


@needs_bf16
def test_openvino_in_bf16_stays_near_fp32(make_openvino: Callable[..., OpenVinoEngine], reference: TorchEngine) -> None:
    engine = make_openvino(precision="bf16")
    assert engine.precision == "bf16"
    nearness = cosines(engine.embed(images()), reference.embed(images()))
    assert 0.9995 < nearness.min() < 0.9999999


@needs_bf16
def test_bf16_moves_nearest_neighbour_distances_by_less_than_two_percent(
    make_openvino: Callable[..., OpenVinoEngine], reference: TorchEngine
) -> None:
    exact, rounded = nearest_distances(reference), nearest_distances(make_openvino(precision="bf16"))
    assert np.abs(rounded / exact - 1).max() < 0.02
    # Which patch is the most anomalous does not change with the precision.
    assert rounded.argmax() == exact.argmax()


def test_embeddings_handed_out_are_not_overwritten_by_the_next_image(
    make_openvino: Callable[..., OpenVinoEngine],
) -> None:
    engine = make_openvino()
    first = engine.embed(images(seed=0))
    kept = first.copy()
    engine.embed(images(seed=1))
    np.testing.assert_array_equal(first, kept)


def test_threads_that_ask_for_different_sizes_get_their_own_embeddings(
    make_openvino: Callable[..., OpenVinoEngine], reference: TorchEngine
) -> None:
    engine = make_openvino()
    batches = [images(1, input_hw, seed) for seed, input_hw in enumerate([(112, 84), (56, 70), (112, 84), (56, 70)])]
    found: dict[int, NDArray[np.float32]] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: engine.embed(batches[i])})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, batch in enumerate(batches):
        np.testing.assert_allclose(found[i], reference.embed(batch), atol=2e-6)


def test_only_so_many_input_sizes_stay_compiled_and_a_dropped_one_comes_back(
    make_openvino: Callable[..., OpenVinoEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "MAX_COMPILED", 2)
    engine = make_openvino()
    first = engine.embed(images(1, (28, 28)))
    for input_hw in ((28, 42), (28, 28), (28, 56), (28, 28)):
        engine.embed(images(1, input_hw))
    assert engine._request.cache_info().misses == 3
    engine.embed(images(1, (28, 42)))  # was used longest ago
    engine.embed(images(1, (28, 56)))
    assert engine._request.cache_info().misses == 5
    np.testing.assert_array_equal(engine.embed(images(1, (28, 28))), first)


# The converted network on disk


def forbid_converting(engine: OpenVinoEngine) -> Any:
    raise AssertionError("the network was converted again")


def only_folder(cache_dir: Path) -> Path:
    (folder,) = cache_dir.iterdir()
    return folder


@pytest.fixture
def own_cache(make_openvino: Callable[..., OpenVinoEngine], cache_dir: Path, tmp_path: Path) -> Path:
    """A cache of one's own that holds the converted network."""
    kept = cache_dir / f"openvino-{make_openvino()._key('w')}"
    folder = tmp_path / "cache" / kept.name
    folder.mkdir(parents=True)
    for file in kept.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return tmp_path / "cache"


def test_the_network_is_converted_once_and_then_read_from_the_cache(
    make_openvino: Callable[..., OpenVinoEngine],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    reference: TorchEngine,
) -> None:
    monkeypatch.setattr(OpenVinoEngine, "_convert", forbid_converting)
    engine = make_openvino(cache_dir=own_cache)
    assert engine.origin == "read from cache"
    np.testing.assert_allclose(engine.embed(images()), reference.embed(images()), atol=2e-6)
    with pytest.raises(AssertionError, match="converted again"):
        make_openvino(cache_dir=own_cache, weights_digest="other weights")


def _flip_a_byte(folder: Path) -> None:
    with (folder / "model.bin").open("rb+") as stream:
        stream.seek(1_000_000)
        byte = stream.read(1)[0]
        stream.seek(1_000_000)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_flip_a_byte, id="one bit"),
        pytest.param(lambda folder: os.truncate(folder / "model.bin", 1000), id="truncated"),
        pytest.param(lambda folder: (folder / "model.xml").unlink(), id="file missing"),
        pytest.param(lambda folder: (folder / "SHA256SUMS").write_text(""), id="no digests"),
    ],
)
def test_a_cache_that_does_not_match_its_digests_is_rebuilt_with_a_warning(
    spoil: Callable[[Path], object],
    make_openvino: Callable[..., OpenVinoEngine],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph = make_openvino(cache_dir=own_cache)._graph
    spoil(only_folder(own_cache))
    monkeypatch.setattr(OpenVinoEngine, "_convert", lambda engine: graph)  # Converting takes seconds each time.
    assert make_openvino(cache_dir=own_cache).origin == "converted"
    assert "is rebuilt" in caplog.text
    monkeypatch.setattr(OpenVinoEngine, "_convert", forbid_converting)
    assert make_openvino(cache_dir=own_cache).embed(images()).shape == (1, 48, 768)


def test_a_new_graph_takes_the_place_of_those_of_other_weights_or_versions(
    make_openvino: Callable[..., OpenVinoEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make_openvino()._graph
    monkeypatch.setattr(OpenVinoEngine, "_convert", lambda engine: graph)
    for name in ("openvino-of-last-year", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    kept = f"openvino-{make_openvino(cache_dir=tmp_path)._key('w')}"
    assert {path.name for path in tmp_path.iterdir()} == {kept, "notes"}
    assert make_openvino(cache_dir=tmp_path).origin == "read from cache"


def test_a_cache_that_cannot_be_written_costs_a_warning_and_not_the_engine(
    make_openvino: Callable[..., OpenVinoEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph = make_openvino()._graph
    monkeypatch.setattr(OpenVinoEngine, "_convert", lambda engine: graph)
    (tmp_path / "file").write_text("in the way")
    engine = make_openvino(cache_dir=tmp_path / "file")
    assert engine.embed(images()).shape == (1, 48, 768)
    assert "cannot be kept" in caplog.text


def test_a_killed_writer_leaves_nothing_that_would_be_read(
    make_openvino: Callable[..., OpenVinoEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make_openvino()._graph
    monkeypatch.setattr(OpenVinoEngine, "_convert", lambda engine: graph)
    seen: list[tuple[list[str], list[str]]] = []

    def sync(draft: Path) -> None:
        seen.append(
            (sorted(file.name for file in draft.iterdir()), [path.name for path in tmp_path.glob("openvino-*")])
        )
        sync_tree(draft)

    monkeypatch.setattr(openvino_engine, "sync_tree", sync)
    make_openvino(cache_dir=tmp_path)
    # Until all three files are on the disk there is no folder of the name that is read.
    assert seen == [(["SHA256SUMS", "model.bin", "model.xml"], [])]
    assert len(list(tmp_path.iterdir())) == 1


# Which engine


def test_a_cpu_gets_openvino_and_a_precision_that_the_processor_has(embedder: PatchEmbedder, cache_dir: Path) -> None:
    engine, fallback = choose_engine(embedder, weights_digest="w", cache_dir=cache_dir)
    assert (engine.name, engine.device, fallback) == ("openvino", "cpu", None)
    assert engine.precision.upper() in CAPABILITIES


def test_the_number_of_threads_holds_for_pytorch_and_openvino(embedder: PatchEmbedder, cache_dir: Path) -> None:
    before = torch.get_num_threads()
    try:
        engine, _ = choose_engine(embedder, weights_digest="w", cache_dir=cache_dir, threads=1)
        assert torch.get_num_threads() == 1
        assert isinstance(engine, OpenVinoEngine)
        compiled = engine._request((28, 28)).get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.mark.usefixtures("no_openvino")
def test_without_openvino_pytorch_computes_and_says_so(
    embedder: PatchEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    engine, fallback = choose_engine(embedder)
    assert (engine.name, engine.precision) == ("torch", "fp32")
    assert fallback is not None
    assert "openvino is not installed" in fallback
    assert fallback in caplog.text


@pytest.mark.usefixtures("no_openvino")
def test_openvino_that_was_asked_for_and_is_missing_is_an_error(embedder: PatchEmbedder) -> None:
    with pytest.raises(OpenVinoUnusable, match="set BDI_ENGINE to torch"):
        choose_engine(embedder, engine="openvino")


def test_a_network_that_openvino_cannot_convert_is_left_to_pytorch(
    embedder: PatchEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("No conversion rule found for operations: aten.something")

    monkeypatch.setattr("torch.export.export", fail)
    engine, fallback = choose_engine(embedder)
    assert engine.name == "torch"
    assert fallback is not None
    assert "cannot convert the network" in fallback


def test_openvino_is_not_for_cuda(embedder: PatchEmbedder) -> None:
    with pytest.raises(ValueError, match="runs on the CPU, not on cuda:0"):
        choose_engine(embedder, engine="openvino", device="cuda:0")


def test_a_precision_that_the_processor_has_not_is_an_error(
    make_openvino: Callable[..., OpenVinoEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = type(openvino_engine._import_openvino().Core())
    monkeypatch.setattr(core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(Unavailable, match="does not compute in bf16"):
        make_openvino(precision="bf16")


def test_loading_openvino_leaves_no_trace_for_its_telemetry(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from backend.extractors.openvino_engine import _import_openvino\n"
        "_import_openvino().Core()\n"
        "print([name for name, module in sys.modules.items() if module and name.startswith('openvino_telemetry')])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "CI": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert said.strip() == "[]"
    assert not (tmp_path / "intel").exists()


# Devices


@pytest.mark.parametrize(
    ("device", "count", "resolved"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda", 0, Unavailable),
        ("cuda:2", 2, Unavailable),
        ("cuda:", 2, ValueError),
        ("mps", 0, ValueError),
    ],
)
def test_the_device_is_the_one_asked_for_or_an_error(
    device: str, count: int, resolved: str | type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ones(*_: object, device: str) -> torch.Tensor:
        if int(device.removeprefix("cuda:")) >= count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch, "ones", ones)  # There is no device to compute on.
    if isinstance(resolved, str):
        assert resolve_device(device) == resolved
    else:
        with pytest.raises(resolved, match=device if resolved is Unavailable else "device must be"):
            resolve_device(device)


def test_a_cuda_device_that_is_there_but_does_not_compute_is_passed_over_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    assert resolve_device("auto") == "cpu"
    assert "the CPU computes" in caplog.text
    with pytest.raises(Unavailable, match="cuda:0 was asked for, but PyTorch cannot compute on it"):
        resolve_device("cuda:0")
