from __future__ import annotations

import re
from pathlib import Path

from backend.settings import Settings

README = (Path(__file__).parents[2] / "README_backend.md").read_text(encoding="utf-8")


def test_readme_names_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(BDI_\w+)` \| `([^`]*)` \|", README, re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        elif isinstance(default, bool):
            default = str(default).lower()
        expected[f"BDI_{name.upper()}"] = "—" if default in (None, "") else str(default)
    assert rows == expected


def test_readme_names_every_module_of_the_package() -> None:
    package = Path(__file__).parents[2] / "backend"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    section = README[README.index("## The code") :]
    named = set(re.findall(r"\w+", section))
    assert modules - named == set()
