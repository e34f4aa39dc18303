"""What the page says, in the languages of its users: the table of strings, and numbers and times as they write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

Language = Literal["en", "es"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
NAMES: dict[Language, str] = {"en": "English", "es": "Español"}
STRINGS = Path(__file__).parent / "strings"

_POINT: dict[Language, tuple[str, str]] = {"en": (",", "."), "es": ("\N{NARROW NO-BREAK SPACE}", ",")}
_MONTHS: dict[Language, str] = {
    "en": "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
    "es": "ene feb mar abr may jun jul ago sep oct nov dic",
}
_UNITS = ("B", "kB", "MB", "GB", "TB")


@cache
def table() -> dict[str, dict[Language, str]]:
    """Return all strings by ``file.key``, each with one text per language."""
    return {
        f"{path.stem}.{key}": texts
        for path in sorted(STRINGS.glob("*.json"))
        for key, texts in json.loads(path.read_text("utf-8")).items()
    }


def language_of(chosen: str | None, accepted: str) -> Language:
    """Return the language that was chosen, else the first of Accept-Language that the page speaks, else English."""
    if chosen in LANGUAGES:
        return chosen
    wishes = []
    for place, each in enumerate(accepted.split(",")[:20]):
        name, _, quality = each.strip().lower().partition(";")
        known = next((language for language in LANGUAGES if name == language or name.startswith(f"{language}-")), None)
        if known:
            wishes.append((-_quality(quality), place, known))
    return min(wishes)[2] if wishes and min(wishes)[0] < 0 else "en"


@dataclass(frozen=True)
class Words:
    """The texts of one language."""

    language: Language

    def __call__(self, key: str, /, **values: Any) -> str:
        """Return the text of a key; numbers that it holds as ``{name}`` are written as the language does.

        Raises:
            KeyError: If the table has no such key.
        """
        text = table()[key][self.language]
        return text.format_map({name: self._shown(value) for name, value in values.items()}) if values else text

    def has(self, key: str) -> bool:
        """Return whether the table has a key."""
        return key in table()

    def number(self, value: float | None, digits: int = 0) -> str:
        """Return a number with so many decimals; a dash for None."""
        if value is None:
            return "–"
        thousands, point = _POINT[self.language]
        text = f"{value:,.{digits}f}"
        if self.language == "es" and abs(value) < 10_000:  # Spanish groups from five digits on
            text = text.replace(",", "")
        return text.translate({ord(","): thousands, ord("."): point}).replace("-", "\N{MINUS SIGN}")

    def percent(self, share: float | None, digits: int = 1) -> str:
        """Return a share of 0 … 1 in per cent."""
        return "–" if share is None else f"{self.number(100 * share, digits)}\N{NARROW NO-BREAK SPACE}%"

    def size(self, n_bytes: float | None) -> str:
        """Return a number of bytes in the unit that suits it."""
        if n_bytes is None:
            return "–"
        unit = 0
        while n_bytes >= 1000 and unit < len(_UNITS) - 1:
            n_bytes, unit = n_bytes / 1000, unit + 1
        return f"{self.number(n_bytes, 1 if unit and n_bytes < 100 else 0)}\N{NARROW NO-BREAK SPACE}{_UNITS[unit]}"

    def time(self, iso: str | None, *, seconds: bool = False) -> str:
        """Return a time of ISO 8601 as day and time where the service stands; a dash for None."""
        if not iso:
            return "–"
        return self.moment(datetime.fromisoformat(iso).astimezone(), seconds=seconds)

    def moment(self, when: datetime, *, hours: bool = True, seconds: bool = False) -> str:
        """Return day and time as a clock of its time zone shows them; ``hours``: not the day alone."""
        day = f"{when.day} {_MONTHS[self.language].split()[when.month - 1]} {when.year}"
        return f"{day}, {when:%H:%M:%S}" if seconds else f"{day}, {when:%H:%M}" if hours else day

    def _shown(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        return self.number(value, 0 if isinstance(value, int) else 3)


def _quality(text: str) -> float:
    name, _, value = text.strip().partition("=")
    try:
        return min(1.0, max(0.0, float(value))) if name == "q" else 1.0
    except ValueError:
        return 0.0


def missing(strings: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the keys that lack a language, or have one that the page does not speak, or an empty text."""
    return [key for key, texts in strings.items() if set(texts) != set(LANGUAGES) or not all(texts.values())]
