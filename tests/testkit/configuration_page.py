"""Writes docs/configuration.md from ``Settings``: ``python -m tests.testkit.configuration_page``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from backend.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

_HEAD = """\
# Configuration

<!-- Written by `python -m tests.testkit.configuration_page` from `backend/settings.py`. Do not edit it by hand. -->

The service is configured by environment variables. They are read once, when the process starts: a change needs a
restart. A value outside its range stops the start with a message that names the setting. A variable that is not in
these tables has no effect. Names may be written in upper or lower case.

```bash
BDI_MODELS_DIR=/srv/models BDI_LOG_FILE=/var/log/roi.jsonl roi-inspector serve
```

```powershell
$env:BDI_MODELS_DIR = "D:\\models"
$env:BDI_LOG_FILE = "D:\\log\\roi.jsonl"
.venv\\Scripts\\roi-inspector serve
```

Truth values are written `true` or `false` (`1` and `0` work too). A relative path starts at the working directory of
the process.
"""

_SECTIONS = {
    "backend_host": ("Address and models folder", ""),
    "extractor": (
        "Extractor",
        """\
What computes the patch embeddings. A memory can only be used with the extractor, weights and input size that made it.
After a change of `BDI_EXTRACTOR`, `BDI_INPUT_SIZE`, `BDI_SCALES`, `BDI_RESIZE` or of the weights, calls on a ROI that
was fitted before answer 409 `extractor_mismatch` until `roi-inspector refit` or `POST /refit` makes it anew from its
stored images ([operations.md](operations.md#upgrading)).

`BDI_DEVICE`, `BDI_ENGINE` and `BDI_PRECISION` decide the precision of the network. A memory of another precision is
used where its scores change by less than 1 % of the threshold; the service measures that on stored images. Otherwise
it is refused in the same way.
""",
    ),
    "coreset_rate": (
        "Memory and score",
        """\
The first fit of a ROI stores these values in its memory, and later fits keep them. **A change is for new ROIs and for
`mode=replace`**; `/fit_ok` names what it did not take. `BDI_SCORE_MODE`,
`BDI_SCORE_PERCENTILE` and `BDI_AREA_MM2_THR` hold until the ROI is calibrated; from then on its calibration decides.
`/fit_ok` can set the coreset rate of one fit (`coreset_rate`; `memory_fit=true` means 1).

`BDI_ALIGNED` is for new ROIs and for `mode=replace`: later fits of a ROI keep what it was fitted with, unless they send
`aligned`. With `auto` the images decide as soon as they show 8 parts, and later ones do not change that: `/fit_ok`
answers how well all of them agree by position (`alignment`, from 0.33 on aligned) and warns where that has come to say
something else.
""",
    ),
    "min_ok_samples": ("Calibration", ""),
    "cache_max_entries": (
        "Limits",
        """\
A call over a limit is answered 408, 413 or 503. [security.md](security.md) says what the limits protect against.
""",
    ),
    "api_keys": ("Keys, log and audit", "See [operations.md](operations.md).\n"),
    "cors_origins": ("Web pages and proxies", "See [security.md](security.md).\n"),
}
"""Title and text of each section, by the first setting in it."""

_ALLOWED = {
    "device": "`auto`, `cpu`, `cuda`, `cuda:N`",
    "scales": "1 to 3 numbers in 0.25 … 2, the first one 1.0",
    "api_keys": "`role:secret,…`; a secret has at least 16 visible ASCII characters",
    "cors_origins": "origins, separated by commas; `*` for all",
    "allowed_hosts": "names or addresses without port, separated by commas; `*` for any",
    "trusted_proxies": "addresses or networks, separated by commas",
}
"""Of settings whose values a pattern or a validator checks."""


def page() -> str:
    """Return the page: every setting with its name, default, allowed values and meaning."""
    lines = [_HEAD.rstrip("\n")]
    for name, field in Settings.model_fields.items():
        if name in _SECTIONS:
            title, text = _SECTIONS[name]
            lines += [f"\n## {title}\n", text] if text else [f"\n## {title}\n"]
            lines += ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
        lines.append(f"| `BDI_{name.upper()}` | {_default(field)} | {_allowed(name, field)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(name: str, field: FieldInfo) -> str:
    if name in _ALLOWED:
        return _ALLOWED[name]
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    if kind in (int, float):
        return f"{'integer' if kind is int else 'number'}, {_range(field.metadata)}"
    return "path" if Path in (kind, *get_args(kind)) else "text"


def _range(metadata: Iterable[Any]) -> str:
    bounds = {name: getattr(each, name) for each in metadata for name in ("ge", "gt", "le") if hasattr(each, name)}
    lowest = f"above {_number(bounds['gt'])}" if "gt" in bounds else _number(bounds["ge"])
    return f"{lowest} … {_number(bounds['le'])}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
