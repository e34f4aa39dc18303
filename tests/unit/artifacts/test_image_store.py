from __future__ import annotations

import numpy as np
import pytest

from backend.artifacts.image_store import ImageStore
from backend.artifacts.model_key import ModelKey
from backend.artifacts.store import ArtefactStore
from backend.artifacts.stored_image import FILE_NAME_DIGITS, StoredImage, safe_stem
from backend.errors import ArtefactCorrupt, NotFound
from backend.imaging.image_codec import image_suffix, pixel_digest
from backend.utils import canonical_json, sealed_json, sha256_hex, unsealed_json
from tests.testkit.fakes import encoded, good_image


@pytest.fixture
def images(tmp_path) -> ImageStore:
    return ArtefactStore(tmp_path).images(ModelKey(role_id="roi", roi_id="roi"))


def described(data: bytes, seed: int = 0, **changes) -> StoredImage:
    digest = pixel_digest(good_image(seed))
    fields = {
        "digest": digest,
        "label": "ok",
        "name": "Teil-1",
        "part_id": digest,
        "image_hw": (64, 64),
        "mm_per_px": 0.2,
        "bytes_sha256": sha256_hex(data),
        "suffix": image_suffix(data),
        "meta": {"operator": "Zoë", "shape": {"kind": "rect"}},
    }
    return StoredImage(**{**fields, **changes})


def png(seed: int = 0) -> bytes:
    return encoded(good_image(seed))


def test_images_read_back_under_their_own_label_by_digest_whatever_the_order_of_their_arrival(images):
    stored = [described(png(seed), seed) for seed in range(5)]
    for seed, image in enumerate(stored):
        assert images.put(image, png(seed)) == image
        assert images.get(image.digest, "ok") == image == images.find(image.file_name, "ok")
        assert images.read(image) == png(seed)
        assert (images.get(image.digest, "ng"), images.find(image.file_name, "ng")) == (None, None)
    assert images.labelled("ok") == sorted(stored, key=lambda image: image.digest)
    assert images.labelled("ng") == []


def test_the_same_picture_in_another_file_keeps_the_first_ones_bytes_and_stays_readable(images):
    images.put(described(png()), png())
    bmp = encoded(good_image(0), "BMP")
    kept = images.put(described(bmp, name="other"), bmp)
    assert (kept.suffix, kept.name, kept.bytes_sha256) == (".png", "Teil-1", sha256_hex(png()))
    assert images.read(kept) == png()
    assert images.labelled("ok") == [kept]


def test_a_repeat_that_knows_more_adds_it_and_one_that_knows_less_takes_nothing_away(images):
    digest = described(png()).digest
    images.put(described(png(), part_id="P7", mm_per_px=None, meta={}), png())
    kept = images.put(described(png(), part_id=digest, mm_per_px=0.2, meta={"a": 1}), png())
    assert (kept.part_id, kept.mm_per_px, kept.meta) == ("P7", 0.2, {"a": 1})
    kept = images.put(described(png(), part_id="P8", mm_per_px=None, meta={}), png())
    assert (kept.part_id, kept.mm_per_px, kept.meta) == ("P8", 0.2, {"a": 1})
    assert images.get(digest, "ok") == kept


@pytest.mark.parametrize("damage", [b"", b"rubbish", None], ids=["empty", "rubbish", "deleted"])
def test_an_image_that_is_not_what_was_uploaded_is_never_handed_out_and_an_upload_mends_it(images, tmp_path, damage):
    image = images.put(described(png()), png())
    (path,) = (tmp_path / "roi").rglob("*.png")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(NotFound if damage is None else ArtefactCorrupt, match=image.file_name):
        images.read(image)
    mended = images.put(described(png()), png())
    assert images.read(mended) == png()


@pytest.mark.parametrize("facts", [b"", b"{", b"[]", b"{}", b'{"image_hw": 3}', b"\xff"])
def test_damaged_facts_do_not_hide_the_others_and_an_upload_mends_them(images, tmp_path, facts):
    image = images.put(described(png()), png())
    other = images.put(described(png(1), 1), png(1))
    (tmp_path / "roi" / "roi" / "images" / "ok" / f"{image.digest}.json").write_bytes(facts)
    assert other in images.labelled("ok")
    assert images.get(image.digest, "ok").is_damaged
    with pytest.raises(ArtefactCorrupt):
        images.read(images.get(image.digest, "ok"))
    images.put(described(png()), png())
    assert images.labelled("ok") == sorted([image, other], key=lambda one: one.digest)
    assert images.read(image) == png()


def test_an_image_counts_only_when_its_facts_are_there(images, tmp_path):
    image = images.put(described(png()), png())
    (tmp_path / "roi" / "roi" / "images" / "ok" / f"{image.digest}.json").unlink()  # a crash between the two files
    assert images.labelled("ok") == []
    assert images.get(image.digest, "ok") is None
    images.put(image, png())
    assert images.labelled("ok") == [image]


def test_deleting_an_image_takes_its_bytes_facts_and_embeddings(images, tmp_path):
    image = images.put(described(png()), png())
    other = images.put(described(png(1), 1), png(1))
    for one in (image, other):
        images.put_embeddings(one.digest, "x", np.zeros((2, 3), np.float32))
    assert images.delete([image.digest], "ok")
    assert not images.delete([image.digest], "ok")
    assert images.labelled("ok") == [other]
    left = [path.name for path in (tmp_path / "roi").rglob("*") if path.is_file()]
    assert sorted(left) == sorted([f"{other.digest}.png", f"{other.digest}.json", f"{other.digest}.npy"])


def test_embeddings_read_back_to_the_bit_for_the_extractor_that_made_them(images):
    rows = np.random.default_rng(0).standard_normal((81, 7)).astype(np.float32)
    images.put_embeddings("d" * 64, "one", rows)
    np.testing.assert_array_equal(images.get_embeddings("d" * 64, "one"), rows)
    assert images.get_embeddings("d" * 64, "two") is None
    assert images.get_embeddings("e" * 64, "one") is None


def test_the_embeddings_of_all_other_extractors_can_be_deleted(images, tmp_path):
    rows = np.ones((9, 4), np.float32)
    assert images.keep_embeddings_of("one") == 0
    for digest in ("d" * 64, "e" * 64):
        for made_by in ("one", "two", "three"):
            images.put_embeddings(digest, made_by, rows)
    assert images.keep_embeddings_of("two") == 4
    assert [images.get_embeddings("d" * 64, made_by) is None for made_by in ("one", "two", "three")] == [
        True,
        False,
        True,
    ]
    (folder,) = (tmp_path / "roi" / "roi" / "embeddings").iterdir()
    assert len(list(folder.iterdir())) == 2
    note = folder.parent / "another" / "note.txt"
    note.parent.mkdir()
    note.write_text("of an operator")
    assert images.keep_embeddings_of("two") == 0
    assert note.exists()


def test_damaged_embeddings_count_as_missing(images, tmp_path):
    images.put_embeddings("d" * 64, "one", np.ones((9, 4), np.float32))
    (path,) = (tmp_path / "roi").rglob("*.npy")
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[at] ^= 0x20
        path.write_bytes(broken)
        assert images.get_embeddings("d" * 64, "one") is None
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert images.get_embeddings("d" * 64, "one") is None
    path.write_bytes(whole)
    assert images.get_embeddings("d" * 64, "one") is not None


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("part 7.png", "part_7"),
        ("C:\\Users\\me\\Bild.bmp", "Bild"),
        ("/etc/passwd", "passwd"),
        ("../../x.png", "x"),
        ("検査 1.tif", "検査_1"),
        ("Gru\u0308n.png", "Grün"),
        ("a.b.c.png", "a_b_c"),
        ("...", "image"),
        ("", "image"),
        ("??.png", "image"),
        ("x" * 100 + ".png", "x" * 60),
        ("a\0b\n.png", "a_b"),
    ],
)
def test_an_uploaded_name_is_made_safe(name, stem):
    assert safe_stem(name) == stem


def test_a_file_name_names_one_image(images):
    image = images.put(described(png()), png())
    assert image.file_name == f"Teil-1-{image.digest[:FILE_NAME_DIGITS]}.png"
    wrong = [
        image.file_name.replace("Teil", "teil"),
        image.file_name.replace(".png", ".bmp"),
        image.digest,
        f"{image.digest[:FILE_NAME_DIGITS]}.png",
        "-.png",
        "a-" + "*" * FILE_NAME_DIGITS + ".png",
        "a-" + "?" * FILE_NAME_DIGITS + ".png",
        "../" + image.file_name,
        "",
    ]
    assert [images.find(name, "ok") for name in wrong] == [None] * len(wrong)


def test_facts_without_a_digest_or_of_another_image_are_damaged(images, tmp_path):
    image = images.put(described(png()), png())
    path = tmp_path / "roi" / "roi" / "images" / "ok" / f"{image.digest}.json"
    whole = path.read_bytes()
    fields = unsealed_json(whole)
    changes = ({"more": 1}, {"digest": "e" * 64}, {"label": "ng"})
    for content in (canonical_json(fields), whole + b" ", *(sealed_json({**fields, **change}) for change in changes)):
        path.write_bytes(content)
        assert images.get(image.digest, "ok").is_damaged
    path.write_bytes(sealed_json(fields))
    assert images.get(image.digest, "ok") == image


def test_a_block_that_fails_takes_back_what_it_stored_and_nothing_else(images):
    old = images.put(described(png()), png())

    def fail(*, keep=False):
        with images.all_or_none():
            images.put(described(png(), part_id="P9"), png())  # was there before
            images.put(described(png(2), 2), png(2))
            if keep:
                images.keep()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [image.digest for image in images.labelled("ok")] == [old.digest]
    with images.all_or_none():
        images.put(described(png(1), 1), png(1))
    with pytest.raises(KeyError):
        fail(keep=True)
    assert len(images.labelled("ok")) == 3


def test_many_are_deleted_at_once_and_counted(images):
    stored = [images.put(described(png(seed), seed), png(seed)) for seed in range(4)]
    gone = [image.digest for image in stored[:3]]
    assert images.delete([*gone, "f" * 64], "ok") == 3
    assert images.delete(gone, "ok") == 0
    assert images.labelled("ok") == [stored[3]]
