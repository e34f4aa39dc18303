from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backend.artifacts.model_key import ModelKey, checked_recipe, folder_name, id_of_folder
from backend.errors import InspectionError, InvalidId, ReservedRecipe

IDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="/\\"), min_size=1, max_size=64
)
WORDS = [
    *("inspection-1", "Pattern", "Ölwanne", "検査-1", "Деталь 3", "πίεση", "ทดสอบ", "जाँच", "قطعة", "가나다"),
    *("CON", "con", "Con.txt", "aux", "NUL.tar.gz", "COM1", "lpt9.x", "COM¹", "LPT³.log", "con .txt", "prn   "),
    *("recipes", "RECIPES", "keys", "images", "a.", "a ", "a. .", ".hidden", " a", "...a", "%41", "a%", "a:b"),
    *("50% links!", 'x"<>|?*'),
]
REFUSED = [
    *("", " ", "\u3000", ".", "..", "...", ". .", "a/b", "a\\b", "../a", "a\0b", "a\nb", "\x7f", "a\u200bb", "\ud800"),
    *("x" * 65, "検" * 64),
]
REFUSED_RECIPES = [
    *("", " ", "last", "LAST", " Last ", "-a", "_a", "a b", "a/b", "..", "ä", "a.b", "a\nb", "a\0", "con:", "İ"),
    "x" * 65,
]


def checked(an_id: str) -> str:
    """The id as a ModelKey keeps it, or a discarded example where it refuses it."""
    try:
        return ModelKey(role_id="r", roi_id=an_id).roi_id
    except InvalidId:
        assume(False)
        raise


def is_safe_on_windows(name: str) -> bool:
    """What Microsoft's "Naming Files, Paths, and Namespaces" asks of a name."""
    devices = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
    devices |= {port + n for port in ("COM", "LPT") for n in "0123456789¹²³"}
    return (
        not any(ord(c) < 32 or c in '<>:"/\\|?*' for c in name)
        and name[-1] not in ". "
        and name.split(".")[0].rstrip(" ").upper() not in devices
        and len(name.encode()) <= 255
    )


@pytest.mark.parametrize(
    ("an_id", "name"),
    [
        ("inspection-1", "inspection-1"),
        ("Ölwanne", "Ölwanne"),
        ("検査", "検査"),
        ("a b.c_d-e", "a b.c_d-e"),
        ("50%", "50%25"),
        ("a:b", "a%3Ab"),
        ("CON", "%43ON"),
        ("con.txt", "%63on.txt"),
        ("console", "console"),
        ("recipes", "%72ecipes"),
        ("Recipes", "%52ecipes"),
        ("a.", "a%2E"),
        (".a ", "%2Ea%20"),
    ],
)
def test_plain_ids_are_their_own_folder_and_only_what_must_be_is_escaped(an_id, name):
    assert folder_name(an_id) == name


def check_folder(an_id: str) -> None:
    kept = checked(an_id)
    for escape_all in (False, True):
        name = folder_name(kept, escape_all=escape_all)
        assert id_of_folder(name) == kept
        assert is_safe_on_windows(name)
        assert name.lower() != "recipes"
        assert not name.startswith((".", " "))


@given(IDS)
def test_the_folder_of_an_id_is_safe_and_reads_back_as_the_id(an_id):
    check_folder(an_id)


@pytest.mark.parametrize("an_id", WORDS)
def test_the_folder_of_a_tricky_id_is_safe_and_reads_back_as_the_id(an_id):
    check_folder(an_id)


@given(IDS, IDS)
def test_two_ids_never_share_a_folder(one, other):
    one, other = checked(one), checked(other)
    names = [{folder_name(an_id), folder_name(an_id, escape_all=True)} for an_id in (one, other)]
    assert names[0].isdisjoint(names[1]) == (one != other)


CASES = st.lists(st.sampled_from("aAbB(ßẞéÉ1. -%cCoOnN"), min_size=1, max_size=5).map("".join)


@given(CASES, CASES)
def test_the_escaped_form_differs_from_every_other_folder_by_more_than_case(one, other):
    one, other = checked(one), checked(other)
    assume(one != other)
    escaped = folder_name(one, escape_all=True).casefold()
    assert escaped != folder_name(other).casefold()
    assert escaped != folder_name(other, escape_all=True).casefold()


def test_the_same_word_typed_on_two_systems_is_one_id():
    composed, decomposed = "Prüfung-Å", unicodedata.normalize("NFD", "Prüfung-Å")
    assert composed != decomposed
    keys = [ModelKey(role_id=word, roi_id=word, model_key=word) for word in (composed, decomposed)]
    assert keys[0] == keys[1]
    assert hash(keys[0]) == hash(keys[1])
    assert id_of_folder(unicodedata.normalize("NFD", folder_name(composed))) == composed  # as macOS lists it


@pytest.mark.parametrize("an_id", REFUSED)
@pytest.mark.parametrize("field", ["role_id", "roi_id", "model_key"])
def test_what_cannot_name_a_folder_is_refused_and_named(an_id, field):
    ids = {"role_id": "Inspection", "roi_id": "inspection-1", field: an_id}
    if field == "model_key" and an_id == "":
        assert ModelKey(**ids).model_key == "inspection-1"
        return
    with pytest.raises(InvalidId, match=field) as refused:
        ModelKey(**ids)
    assert refused.value.details == {"field": field, "min_length": 1, "max_length": 64}


@given(st.text(max_size=80))
def test_any_text_is_an_id_or_a_clear_refusal(text):
    try:
        key = ModelKey(role_id=text, roi_id=text)
    except InvalidId:
        return
    assert id_of_folder(folder_name(key.role_id)) == unicodedata.normalize("NFC", text)


def test_ids_of_64_letters_are_accepted():
    for an_id in ("x" * 64, "X" * 64, "ü" * 20 + "x" * 44, "検査" * 14):
        assert len(ModelKey(role_id=an_id, roi_id=an_id).role_id) == len(an_id)


@pytest.mark.parametrize(
    ("recipe_id", "kept"),
    [("default",) * 2, ("A-1_b", "a-1_b"), (" line2 ", "line2"), ("0",) * 2, ("x" * 64,) * 2, ("lasting",) * 2],
)
def test_a_recipe_id_is_lower_cased(recipe_id, kept):
    assert checked_recipe(recipe_id) == kept
    assert ModelKey(role_id="r", roi_id="i", recipe_id=recipe_id).recipe_id == kept


@pytest.mark.parametrize("recipe_id", REFUSED_RECIPES)
def test_a_recipe_id_that_is_malformed_or_reserved_is_refused(recipe_id):
    with pytest.raises(ReservedRecipe) as refused:
        checked_recipe(recipe_id)
    assert isinstance(refused.value, InspectionError)
    assert refused.value.details == {"field": "recipe_id"}


def test_the_model_key_is_the_roi_unless_somebody_says_otherwise():
    plain = ModelKey(role_id="r", roi_id="i")
    assert plain.model_key == "i"
    assert plain.is_default_model
    assert plain == ModelKey(role_id="r", roi_id="i", model_key="i", recipe_id="DEFAULT")
    other = ModelKey(role_id="r", roi_id="i", model_key="j", recipe_id="x")
    assert not other.is_default_model
    assert other != plain
    assert (str(plain), str(other)) == ("r/i", "r/i [j] (recipe x)")
