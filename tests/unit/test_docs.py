"""What the documents say of files, folders, settings and commands is so."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import backend
from backend.settings import Settings
from tests.testkit import configuration_page

PACKAGE = Path(backend.__file__).parent
ROOT = PACKAGE.parent
README = ROOT / "README_backend.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "models/README.md", "examples/*/README.md")
    for path in ROOT.glob(pattern)
)

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"(?:backend|tests|benchmarks|reliability|docs|examples)/[\w./-]*|[\w./-]+\.(?:py|md|toml|txt)")
_MODULE = re.compile(r"python -m ((?:backend|tests|benchmarks|reliability)\b[\w.]*)")
_TARGET = re.compile(r"make ([a-z]+)")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code_of(document: str) -> list[str]:
    """Return what stands between backticks, outside the code blocks."""
    return _CODE.findall(_FENCE.sub("", text_of(document)))


def anchors_of(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as Markdown renderers make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_configuration_page_is_what_the_settings_say() -> None:
    written = configuration_page.PAGE.read_text(encoding="utf-8")
    assert written == configuration_page.page(), "run python -m tests.testkit.configuration_page"


@pytest.mark.parametrize(("document", "most"), [(README, 200), (ARCHITECTURE, 150)], ids=["readme", "architecture"])
def test_what_a_newcomer_reads_first_is_short(document: Path, most: int) -> None:
    assert len(document.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    for target, anchor in _LINK.findall(text_of(document)):
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_code_exist(document: str) -> None:
    if document == "CHANGELOG.md":  # an entry names what was there then
        return
    near = (ROOT, PACKAGE, (ROOT / document).parent)
    paths = {path for path in code_of(document) if _PATH.fullmatch(path)}
    assert [path for path in paths if not any((folder / path).exists() for folder in near)] == []


def test_each_row_of_the_field_page_names_a_test_that_exists() -> None:
    rows = [line for line in text_of("docs/field.md").splitlines() if line.startswith("| ") and "| test |" not in line]
    for row in rows:
        cell = row.rstrip("|").rsplit("|", 1)[1].strip()
        if cell != "the same":
            path, _, name = cell.strip("`").partition("::")
            assert f"def {name}(" in text_of(path), row


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_settings_exist(document: str) -> None:
    if document == "CHANGELOG.md":
        return
    text = text_of(document)
    assert [name for name in _MODULE.findall(text) if importlib.util.find_spec(name.rstrip(".")) is None] == []
    commands = [*code_of(document), *_FENCE.findall(text)]
    targets = {target for command in commands for target in _TARGET.findall(command)}
    assert (
        targets - set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)) == set()
    )
    settings = {f"BDI_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"BDI_[A-Z0-9_]+\b", text)) - settings == set()


def test_the_architecture_names_every_folder_of_the_package() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {folder for folder in folders if f"{folder}/" not in ARCHITECTURE.read_text(encoding="utf-8")} == set()


def test_the_architecture_draws_the_layers_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    assert "\n".join(layers) in ARCHITECTURE.read_text(encoding="utf-8")
