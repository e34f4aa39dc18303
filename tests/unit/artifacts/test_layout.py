"""What a file of a models folder is, by its path alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.artifacts.files import TEMP_PREFIX
from backend.artifacts.layout import ArtifactPath, classify_path, orphans, unreplaced, walk
from backend.artifacts.model_key import ModelKey

D = "a" * 64
ROI = ModelKey(role_id="r", roi_id="i")
OTHER = ModelKey(role_id="r", roi_id="i", model_key="j")
TIME = "20261122T185500Z"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("r/i/memory.npz", ArtifactPath(kind="memory", key=ROI)),
        ("r/i/index.faiss", ArtifactPath(kind="index", key=ROI)),
        ("r/i/keys/j/calib.json", ArtifactPath(kind="calibration", key=OTHER)),
        (f"r/i/keys/j/heatmaps/{D}.png", ArtifactPath(kind="heatmap", key=OTHER, digest=D)),
        (f"r/i/images/ng/{D}.jpg", ArtifactPath(kind="image", key=ROI, label="ng", digest=D)),
        (f"r/i/images/ok/{D}.json", ArtifactPath(kind="facts", key=ROI, label="ok", digest=D)),
        (f"r/i/embeddings/0123456789abcdef/{D}.npy", ArtifactPath(kind="embeddings", key=ROI, digest=D)),
        (f"r/i/memory.npz.corrupt-{TIME}", ArtifactPath(kind="memory", key=ROI, set_aside=TIME)),
        (
            "r/keys/keys/j/memory.npz",
            ArtifactPath(kind="memory", key=ModelKey(role_id="r", roi_id="keys", model_key="j")),
        ),
        (
            "recipes/line2/%72ecipes/a%3Ab/memory.npz",
            ArtifactPath(kind="memory", key=ModelKey(role_id="recipes", roi_id="a:b", recipe_id="line2")),
        ),
        ("r/i/.lock", ArtifactPath(kind="lock", key=ROI)),
        ("README.md", ArtifactPath(kind="note")),
        ("audit.sqlite3-wal", ArtifactPath(kind="audit")),
        (f".jobs/{D[:32]}.json", ArtifactPath(kind="job")),
        (f".jobs/{D[:32]}.alive", ArtifactPath(kind="job_mark")),
        (".engines/openvino-0123456789abcdef/model.bin", ArtifactPath(kind="engine")),
        (f"r/i/images/ok/{TEMP_PREFIX}0", ArtifactPath(kind="temporary")),
    ],
)
def test_every_file_that_the_service_writes_is_known(name: str, expected: ArtifactPath) -> None:
    assert classify_path(name) == expected
    assert expected.in_use.set_aside == ""


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "r/loose.npz", "r/i/memory.npz.bak", "r/i/memory.npz.corrupt-yesterday", "r/i/images/ok/x.txt"),
        *(f"r/i/images/maybe/{D}.png", f"r/i/images/ok/{D.upper()}.png", f"r/i/keys/j/images/ok/{D}.png"),
        *("r/i/keys/i/memory.npz", "recipes/last/r/i/memory.npz", "recipes/default/r/i/memory.npz", ".x/i/memory.npz"),
        *("recipes/line2/memory.npz", "recipes/LINE2/r/i/memory.npz", "r/%69/../memory.npz", "r//memory.npz"),
        *("./i/memory.npz", "r/a:b/memory.npz", "r/%zz/memory.npz", "r/%ff/memory.npz", "r/a copy?/memory.npz"),
        *(".jobs/x.json", ".engines/x"),
    ],
)
def test_every_other_file_is_unknown(name: str) -> None:
    assert classify_path(name) == ArtifactPath(kind="unknown")


def test_a_walk_yields_files_in_order_and_a_temporary_folder_as_a_whole(tmp_path: Path) -> None:
    for name in ("b/i/memory.npz", "a/i/calib.json", f"a/{TEMP_PREFIX}1/deep/x", f"a/{TEMP_PREFIX}1/y", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"four")
    found = [(entry.name, entry.artifact.kind, entry.n_bytes) for entry in walk(tmp_path)]
    assert found == [
        (f"a/{TEMP_PREFIX}1", "temporary", 8),
        ("a/i/calib.json", "calibration", 4),
        ("b/i/memory.npz", "memory", 4),
        ("notes.txt", "unknown", 4),
    ]
    assert [entry.name for entry in walk(tmp_path, tmp_path / "b")] == ["b/i/memory.npz"]
    assert [*walk(tmp_path / "nowhere")] == []


def test_what_has_no_successor_and_what_has_no_facts_are_found(tmp_path: Path) -> None:
    names = [f"memory.npz.corrupt-{TIME}", f"calib.json.corrupt-{TIME}", "calib.json"]
    names += [f"images/ok/{D}.png", f"images/ok/{'b' * 64}.png", f"images/ok/{'b' * 64}.json.corrupt-{TIME}"]
    names += [f"embeddings/0123456789abcdef/{digit * 64}.npy" for digit in "ab"]
    for name in names:
        (tmp_path / "r" / "i" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / "i" / name).touch()
    entries = [*walk(tmp_path)]
    missing = {artifact.kind for artifact in unreplaced(entry.artifact for entry in entries)}
    assert missing == {"memory", "facts"}
    assert [entry.name for entry in orphans(entries)] == [
        f"r/i/embeddings/0123456789abcdef/{D}.npy",
        f"r/i/images/ok/{D}.png",
    ]
