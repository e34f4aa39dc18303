import cv2
import numpy as np
import pytest

from backend.cli import main
from backend.demo import sample_set
from backend.demo.sample_set import SampleSet, write_samples
from backend.demo.samples import render_defective


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "small"
    steps = []
    wanted = SampleSet(sizes="small", n_good=2, per_kind=2)
    write_samples(wanted, folder, progress=lambda *step: steps.append(step))
    assert steps == [(done, wanted.n_images) for done in range(1, 15)]
    return folder


def test_the_files_lie_where_the_public_sets_have_them(small):
    kinds = ("scratch", "pit", "dent", "rust", "chipped_edge")
    assert set(_files(small)) == {
        *(f"{part}/good/{number}.png" for part in ("train", "test") for number in ("000", "001")),
        *(f"test/{kind}/{number}.png" for kind in kinds for number in ("000", "001")),
        *(f"ground_truth/{kind}/{number}_mask.png" for kind in kinds for number in ("000", "001")),
    }


def test_no_part_is_in_the_set_twice(small):
    images = [content for name, content in _files(small).items() if not name.startswith("ground_truth")]
    assert len(set(images)) == len(images) == 14


def test_image_and_mask_are_those_of_the_rendered_part_at_half_the_usual_size(small):
    sample = render_defective(6_000 + 500 + 1, "pit", scale=0.5)  # the kinds follow each other 500 seeds apart
    image = cv2.imread(str(small / "test" / "pit" / "001.png"))
    mask = cv2.imread(str(small / "ground_truth" / "pit" / "001_mask.png"), cv2.IMREAD_UNCHANGED)
    assert (image == sample.image_bgr).all()
    assert 0.7 <= sample.defect_size_mm <= 1.3
    assert (mask == np.where(sample.defect_mask, 255, 0)).all()


def test_the_same_arguments_give_the_same_files_and_another_seed_other_parts(small, tmp_path):
    write_samples(SampleSet(sizes="small", n_good=2, per_kind=2), tmp_path / "again")
    write_samples(SampleSet(sizes="small", n_good=2, per_kind=2, seed=1), tmp_path / "other")
    assert _files(tmp_path / "again") == _files(small)
    assert set(_files(tmp_path / "other").values()).isdisjoint(_files(small).values())


def test_only_a_set_of_usual_sizes_has_missing_holes():
    assert SampleSet(sizes="usual").kinds == (*SampleSet(sizes="small").kinds[:4], "missing_hole", "chipped_edge")


def test_a_folder_that_holds_anything_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["samples", "--out", str(tmp_path)]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert _files(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--good", "1", "--good is 1; it must be 2 … 3000."),
        ("--per-kind", "501", "--per-kind is 501; it must be 1 … 500."),
        ("--seed", "-1", "--seed is -1; it must not be negative."),
        ("--mm-per-px", "0.5", "--mm-per-px is 0.5: there a defect has between 1 and 36.48 mm, and a pit"),
        ("--mm-per-px", "nan", "--mm-per-px is nan"),
    ],
)
def test_what_cannot_be_rendered_is_said_before_anything_is_written(option, value, sentence, tmp_path, capsys):
    assert main(["samples", "--sizes", "small", "--out", str(tmp_path / "set"), option, value]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    arguments = ["samples", "--sizes", "small", "--good", "2", "--per-kind", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "2 good parts to learn from, 2 others, and 1 with each of scratch, pit" in capsys.readouterr().out
    assert len(_files(tmp_path)) == 14


def test_an_interrupted_command_says_that_the_set_is_not_complete(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_set, "render_good", interrupt)
    assert main(["samples", "--out", str(tmp_path / "set")]) == 1
    assert "is not complete" in capsys.readouterr().err
