"""The names of fields: which ones a model knows, and what is said of one that it does not know."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

MAX_NAMED = 20
"""Fields that an answer names at most."""

_SHOWN_CHARS = 64
_LIKE = 0.75
_LIKE_FREE = 0.8  # where free names are expected beside the known ones
_LISTS = (list, tuple, set, frozenset)


def close_name(name: str, known: Iterable[str], *, contained: bool = False) -> str | None:
    """Return the known name that a misspelt one stands for: the same letters, or nearly.

    Args:
        name: What was sent.
        known: The names that there are.
        contained: Also where the name holds a known one of several words, as ``default_mm_per_px`` does.
    """
    by_letters = {_letters(each): each for each in sorted(known)}
    wanted = _letters(name)
    if wanted in by_letters:
        return by_letters[wanted]
    if contained:
        return next((each for each in sorted(known) if "_" in each and _letters(each) in wanted), None) or next(
            (by_letters[each] for each in difflib.get_close_matches(wanted, by_letters, n=1, cutoff=_LIKE_FREE)), None
        )
    found = difflib.get_close_matches(wanted, by_letters, n=1, cutoff=_LIKE)
    return by_letters[found[0]] if found else None


def unknown_field(name: str, known: Iterable[str], *, of: str = "field") -> str:
    """Return the sentence that names a field nobody reads."""
    close = close_name(name, known)
    hint = f" (did you mean {close}?)" if close else ""
    return f"The {of} {shown(name)}{hint} has no effect: this call does not know it."


def unknown_keys(value: object, annotation: object, path: str = "") -> Iterator[str]:
    """Yield a sentence for each name in decoded JSON that the models of its type do not have."""
    if isinstance(value, list):
        (inner,) = {*get_args(annotation)[:1]} or {None}
        for each in value[:MAX_NAMED]:
            if isinstance(each, dict | list):
                yield from unknown_keys(each, inner, path)
        return
    models = list(models_of(annotation))
    if not isinstance(value, dict) or not models or any(each.model_config.get("extra") == "allow" for each in models):
        return
    fields = {name: of for each in models for name, of in fields_of(each)}
    for name, inner in value.items():
        if name not in fields:
            yield unknown_field(f"{path}{name}", {f"{path}{each}" for each in fields})
        elif isinstance(inner, dict | list):
            yield from unknown_keys(inner, fields[name], f"{path}{name}.")


def fields_of(model: type[BaseModel] | None) -> Iterator[tuple[str, Any]]:
    """Yield the names by which a model's fields may come, and their types."""
    if model is None:
        return
    for key, info in model.model_fields.items():
        alias = info.validation_alias if isinstance(info.validation_alias, str) else info.alias
        yield alias or key, info.annotation
        if alias and model.model_config.get("populate_by_name"):
            yield key, info.annotation


def is_list(annotation: object) -> bool:
    """Return whether a field of this type holds several values."""
    origin = get_origin(annotation)
    if origin is None:
        return annotation in _LISTS
    return origin in _LISTS or (not isinstance(origin, type) and any(map(is_list, get_args(annotation))))


def models_of(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models among the options of a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) not in (*_LISTS, dict, Mapping, Literal):
        for each in get_args(annotation):
            yield from models_of(each)


def model_of(annotation: object) -> type[BaseModel] | None:
    """Return the first model among the options of a type; None where there is none."""
    return next(models_of(annotation), None)


def shown(name: str) -> str:
    """Return a name from a request as a sentence may hold it: quoted, escaped and not too long."""
    return repr(name if len(name) <= _SHOWN_CHARS else f"{name[:_SHOWN_CHARS]}…")


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()
