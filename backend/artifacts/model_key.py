"""The identity of a model, and its folder name."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from backend.errors import InvalidId, ReservedRecipe

DEFAULT_RECIPE = "default"
MAX_ID_CHARS = 64
MAX_FOLDER_BYTES = 255  # what file systems allow
RECIPES_FOLDER = "recipes"

_RECIPE_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
# Device names that Windows keeps for itself in every folder, with any suffix.
_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"}
)


@dataclass(frozen=True, kw_only=True)
class ModelKey:
    """Which model: recipe, role, ROI and, where a ROI has several, the model's own key.

    Ids are brought to Unicode NFC, so that the same word typed on two systems is one id.

    Args:
        role_id: 1 … 64 printable characters of any language.
        roi_id: The same.
        recipe_id: Lower-cased; ``^[a-z0-9][a-z0-9_-]{0,63}$`` and not ``last``.
        model_key: Like ``roi_id``, which it is by default.

    Raises:
        InvalidId: If an id is empty, too long, has control characters or slashes, or consists of dots.
        ReservedRecipe: If the recipe id is malformed or reserved.
    """

    role_id: str
    roi_id: str
    recipe_id: str = DEFAULT_RECIPE
    model_key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe_id", checked_recipe(self.recipe_id))
        for name in ("role_id", "roi_id"):
            object.__setattr__(self, name, _checked_id(getattr(self, name), name))
        object.__setattr__(self, "model_key", _checked_id(self.model_key or self.roi_id, "model_key"))

    @property
    def is_default_model(self) -> bool:
        """True when the model is the ROI's own, not one of several under other keys."""
        return self.model_key == self.roi_id

    @property
    def roi(self) -> ModelKey:
        """The ROI's own model."""
        return replace(self, model_key="")

    def __str__(self) -> str:
        own = "" if self.is_default_model else f" [{self.model_key}]"
        recipe = "" if self.recipe_id == DEFAULT_RECIPE else f" (recipe {self.recipe_id})"
        return f"{self.role_id}/{self.roi_id}{own}{recipe}"


def checked_recipe(recipe_id: str) -> str:
    """Return a recipe id in lower case.

    Raises:
        ReservedRecipe: If it is malformed or reserved.
    """
    lowered = recipe_id.strip().lower()
    if lowered == "last" or not _RECIPE_PATTERN.fullmatch(lowered):
        raise ReservedRecipe(
            f"The recipe id {recipe_id[:80]!r} cannot be used. Use 1 to 64 of a-z, 0-9, '_' and '-', beginning with a "
            "letter or digit; 'last' is reserved.",
            details={"field": "recipe_id"},
        )
    return lowered


def folder_name(an_id: str, *, escape_all: bool = False) -> str:
    """Return a folder name for an id; ``id_of_folder`` reads it back.

    Letters, digits and combining marks of any language, ``-`` and ``_`` stay as they are; dots and spaces stay inside.
    Everything else is %-escaped, and so is one character of a name that Windows keeps for itself (``CON``) or that
    means something here (``recipes``).

    Args:
        an_id: A checked id.
        escape_all: Also escape every letter. No other id's name, in either form, differs from this one by case alone
            then, so the store uses it for the second of two ids that a case-insensitive file system would mix up.
    """
    name = "".join(character if _stays(character, escape_all) else _escaped(character) for character in an_id)
    if name[-1] in ". ":
        name = name[:-1] + _escaped(name[-1])
    if name[0] in ". ":
        name = _escaped(name[0]) + name[1:]
    if name.split(".")[0].rstrip().lower() in _WINDOWS_DEVICES or name.lower() == RECIPES_FOLDER:
        name = _escaped(name[0]) + name[1:]
    return name


def id_of_folder(name: str) -> str:
    """Return the id that a folder name stands for."""
    return unicodedata.normalize("NFC", unquote(name, errors="strict"))


def _checked_id(value: str, field: str) -> str:
    value = unicodedata.normalize("NFC", value)
    problem = None
    if not value.strip():
        problem = f"The field {field} is empty."
    elif len(value) > MAX_ID_CHARS:
        problem = f"The field {field} has {len(value)} characters; at most {MAX_ID_CHARS} are allowed."
    elif not value.strip(". "):
        problem = f"The field {field} consists of dots."
    elif any(unicodedata.category(character)[0] == "C" or character in "/\\" for character in value):
        problem = f"The field {field} has a slash or a control character."
    elif len(folder_name(value, escape_all=True).encode()) > MAX_FOLDER_BYTES:
        problem = f"The field {field} is too long for a folder name."
    if problem is not None:
        raise InvalidId(
            f"{problem} Use 1 to {MAX_ID_CHARS} letters of any language, digits, '-' and '_'.",
            details={"field": field, "min_length": 1, "max_length": MAX_ID_CHARS},
        )
    return value


def _stays(character: str, escape_all: bool) -> bool:
    if character in "-_. ":
        return True
    if escape_all:
        return character.isascii() and character.isdigit()
    return unicodedata.category(character)[0] in "LMN"


def _escaped(character: str) -> str:
    # quote() leaves the unreserved ASCII letters alone; here they are escaped on purpose.
    return f"%{ord(character):02X}" if character.isascii() else quote(character, safe="")
