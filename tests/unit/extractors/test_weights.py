"""Finding weights and loading them, with files of the right form and seeded values."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import tests.testkit.dinov2_files as files
from backend.errors import WeightsUnavailable
from backend.extractors.weights import WeightsFile, find_weights, load_backbone, tensors_digest


@pytest.fixture(scope="session")
def both_forms(tmp_path_factory: pytest.TempPathFactory) -> files.DinoV2Files:
    return files.both_forms(tmp_path_factory.getbasetemp())


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no hub."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def run_python(code: str, **environment: str) -> str:
    """Run code in a process of its own, whose environment the hub client reads when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Finding


def test_importing_the_module_needs_neither_torch_nor_the_hub_client() -> None:
    loaded = run_python("import sys, backend.extractors.weights; print(*sys.modules)").split()
    assert "backend.extractors.weights" in loaded
    assert {"torch", "timm", "huggingface_hub", "numpy"}.isdisjoint(loaded)


def test_a_named_file_is_taken_even_if_the_hub_cache_has_one(tmp_path: Path, hub_cache: Path) -> None:
    named, other = tmp_path / "mine.pth", tmp_path / "other.safetensors"
    named.write_bytes(b"mine")
    other.write_bytes(b"other")
    files.write_hub_cache(hub_cache, other)
    found = find_weights(files.REPO_ID, named=named)
    assert (found.path, found.origin) == (named, "file")


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_a_named_file_that_is_not_one_is_an_error_and_not_replaced_by_the_hub_cache(
    name: str, tmp_path: Path, hub_cache: Path
) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"other")
    files.write_hub_cache(hub_cache, tmp_path / "other.safetensors")
    with pytest.raises(WeightsUnavailable, match="BDI_WEIGHTS names a file that is not there") as caught:
        find_weights(files.REPO_ID, named=tmp_path / name)
    assert str(tmp_path) not in caught.value.sentence


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_the_hub_cache_is_used_under_the_name_whose_ending_is_the_format(
    filename: str, tmp_path: Path, hub_cache: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"w")
    link = files.write_hub_cache(hub_cache, tmp_path / "weights", filename=filename)
    found = find_weights(files.REPO_ID)
    assert (found.path, found.origin) == (link, "hub-cache")
    assert found.path.name == filename


def test_without_a_file_a_cache_or_a_hub_the_sentence_gives_both_ways_to_mend_it(hub_cache: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        find_weights(files.REPO_ID)
    assert "Set BDI_WEIGHTS to a weights file copied" in caught.value.sentence
    assert "let this machine reach the Hugging Face hub once" in caught.value.sentence
    assert str(hub_cache) not in caught.value.sentence


def test_an_interrupted_download_in_the_hub_cache_is_not_taken_for_weights(tmp_path: Path, hub_cache: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w")
    link = files.write_hub_cache(hub_cache, tmp_path / "weights")
    link.resolve().unlink()
    with pytest.raises(WeightsUnavailable):
        find_weights(files.REPO_ID)


class Hub(ThreadingHTTPServer):
    """A hub on this machine that has one file. Until it is served it accepts connections and never answers."""

    body = b"the bytes of the weights"
    file_path = f"/{files.REPO_ID}/resolve/main/model.safetensors"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.downloads = 0

    @contextmanager
    def served(self) -> Iterator[None]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        known = self.path == Hub.file_path
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(Hub.body) if known else 0))
        self.send_header("ETag", f'"{hashlib.sha256(Hub.body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path == Hub.file_path:
            self.server.downloads += 1
            self.wfile.write(Hub.body)

    def log_message(self, *_: object) -> None: ...


def test_the_file_is_downloaded_once_and_then_found_in_the_cache(tmp_path: Path) -> None:
    code = (
        "from backend.extractors.weights import find_weights\n"
        f"for _ in range(2):\n    found = find_weights({files.REPO_ID!r})\n"
        "    print(found.origin, found.path.read_text())"
    )
    with Hub() as hub, hub.served():
        said = run_python(
            code, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0", HF_HUB_DISABLE_PROGRESS_BARS="1"
        )
    assert said.splitlines() == ["hub the bytes of the weights", "hub-cache the bytes of the weights"]
    assert hub.downloads == 1


def test_a_hub_that_never_answers_is_given_up_after_one_short_wait(tmp_path: Path) -> None:
    code = (
        "import backend.extractors.weights as w, time\n"
        "w.HUB_TIMEOUT_S = 0.5\n"
        "start = time.monotonic()\n"
        f"try:\n    w.find_weights({files.REPO_ID!r})\n"
        "except w.WeightsUnavailable:\n    print(time.monotonic() - start)"
    )
    with Hub() as hub:
        said = run_python(code, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    # With its retries the hub client would take more than 15 s.
    assert 0.4 < float(said) < 12


# Loading


def test_both_forms_of_the_same_weights_give_the_same_frozen_network(both_forms: files.DinoV2Files) -> None:
    by_form = [
        load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="file"))
        for path in (both_forms.timm, both_forms.original)
    ]
    written = files.dinov2_tensors()
    for backbone in by_form:
        loaded = backbone.state_dict()
        assert loaded.keys() == written.keys()
        assert all(torch.equal(loaded[name], written[name]) for name in written)
        assert not backbone.training
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
    digests = {tensors_digest(backbone) for backbone in by_form}
    assert len(digests) == 1
    by_form[0].state_dict()["blocks.7.mlp.fc2.bias"][3] += 1e-3
    assert tensors_digest(by_form[0]) not in digests


def test_weights_stored_in_half_precision_load_as_float32(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in files.dinov2_tensors().items()}
    tensors["norm.weight"] = torch.full((384,), 1000.0).half()  # whose sum half precision cannot hold
    path = files.write_timm_file(tmp_path / "half.safetensors", tensors)
    backbone = load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="file"))
    assert {tensor.dtype for tensor in backbone.state_dict().values()} == {torch.float32}


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def _as(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(
            _without("blocks.3.ls2.gamma"), 'Missing key(s) in state_dict: "blocks.3.ls2.gamma"', id="tensor missing"
        ),
        pytest.param(_as("blocks.3.mlp.fc1.weight", 3072, 768), "mismatch for blocks.3.mlp.fc1.weight", id="wide"),
        pytest.param(_as("pos_embed", 1, 785, 384), "size mismatch for pos_embed", id="another grid"),
        pytest.param(
            _as("patch_embed.proj.weight", 384, 3, 16, 16), "mismatch for patch_embed.proj.weight", id="16 px patches"
        ),
        pytest.param(_as("blocks.12.norm1.weight", 384), "blocks.12.norm1.weight", id="a thirteenth block"),
        pytest.param(
            lambda tensors: tensors.update({"norm.bias": torch.full((384,), float("nan"))}),
            "values that are not finite",
            id="not finite",
        ),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_with_what_is_wrong(
    spoil: Callable[[dict[str, torch.Tensor]], object], says: str, tmp_path: Path
) -> None:
    tensors = files.dinov2_tensors()
    spoil(tensors)
    path = files.write_timm_file(tmp_path / "model.safetensors", tensors)
    with pytest.raises(WeightsUnavailable) as caught:
        load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="file"))
    assert says in caught.value.sentence
    assert "Set BDI_WEIGHTS" in caught.value.sentence


def _pickled(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"<html>The document has moved</html>"),
        ("dinov2_vits14_pretrain.pth", b""),
        ("dinov2_vits14_pretrain.pth", b"<html>The document has moved</html>"),
        ("dinov2_vits14_pretrain.pth", _pickled([1, 2, 3])),
        ("dinov2_vits14_pretrain.pth", _pickled({"epoch": 3})),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(filename: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / filename
    path.write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=r"cannot be read as a checkpoint|Missing key\(s\)") as caught:
        load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="file"))
    assert str(tmp_path) not in caught.value.sentence


def test_a_spoilt_file_in_the_hub_cache_is_named_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"half of a download")
    with pytest.raises(WeightsUnavailable, match="in the Hugging Face hub cache, which should be deleted there"):
        load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="hub-cache"))


@pytest.mark.parametrize("form", ["timm", "original"])
def test_a_truncated_file_is_refused(form: str, both_forms: files.DinoV2Files, tmp_path: Path) -> None:
    whole: Path = getattr(both_forms, form)
    path = tmp_path / whole.name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(WeightsUnavailable, match="truncated"):
        load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="file"))


class Malice:
    """Makes a file when it is unpickled by a reader that trusts it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickled_file_is_not_run(zipped: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({"cls_token": torch.zeros(1), "x": Malice(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsUnavailable, match="holds more than tensors"):
        load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="file"))
    assert not canary.exists()
    pickle.loads(pickle.dumps(Malice(canary)))
    assert canary.exists()  # The malice is live; it was the loader that did not run it.


def test_the_digest_depends_on_which_tensor_holds_which_values() -> None:
    def digest(first: float, second: float) -> str:
        network = torch.nn.Linear(1, 1)
        with torch.no_grad():
            network.weight.fill_(first)
            network.bias.fill_(second)
        return tensors_digest(network)

    assert digest(1, 2) == digest(1, 2)
    assert digest(1, 2) != digest(2, 1)
