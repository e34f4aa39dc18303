"""What backend/ imports is declared in pyproject.toml, in the group of those who need it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import backend

ROOT = Path(backend.__file__).parent
PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))["project"]
DISTRIBUTIONS = packages_distributions()
MODULES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in ROOT.rglob("*.py")}
NEEDS_TORCH = {
    *(f"extractors/{name}.py" for name in ("device_search", "embedder", "engines", "openvino_engine")),
}


def name_of(requirement: str) -> str:
    """Return a requirement's normalised name (PEP 503)."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


BASE = {name_of(requirement) for requirement in PROJECT["dependencies"]}
EXTRAS = {
    extra: {name_of(requirement) for requirement in group} for extra, group in PROJECT["optional-dependencies"].items()
}


def imported(tree: ast.AST, *, at_import_time: bool = False) -> Iterator[str]:
    """Yield the packages from elsewhere that a module imports; on request only what importing it imports."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_import_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        yield from {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"backend"}
        pending += ast.iter_child_nodes(node)


def undeclared(packages: Iterator[str], declared: set[str]) -> set[str]:
    """Return the packages that no declared distribution brings."""
    return {
        package
        for package in packages
        if declared.isdisjoint(name_of(distribution) for distribution in DISTRIBUTIONS.get(package, [package]))
    }


def test_the_walk_sees_what_is_imported_and_when() -> None:
    tree = ast.parse("import os, numpy.linalg\ndef f():\n    from torch import nn\nif TYPE_CHECKING:\n    import cv2\n")
    assert set(imported(tree)) == {"numpy", "torch", "cv2"}
    assert set(imported(tree, at_import_time=True)) == {"numpy"}
    assert undeclared(iter(["cv2", "numpy", "nowhere"]), {"opencv-python-headless"}) == {"numpy", "nowhere"}


def test_what_is_imported_is_declared() -> None:
    found = {
        module: undeclared(imported(tree), BASE | EXTRAS["demo" if module.startswith("demo/") else "torch"])
        for module, tree in MODULES.items()
    }
    assert {module: packages for module, packages in found.items() if packages} == {}


def test_without_torch_only_what_computes_with_it_cannot_be_imported() -> None:
    service = {module: tree for module, tree in MODULES.items() if not module.startswith("demo/")}
    needy = {module for module, tree in service.items() if undeclared(imported(tree, at_import_time=True), BASE)}
    assert needy <= NEEDS_TORCH


def test_what_is_declared_is_pinned_in_the_set_that_was_tried() -> None:
    lines = [
        line
        for file in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT.parent / file).read_text("utf-8").splitlines()
        if "==" in line
    ]
    declared = BASE.union(*EXTRAS.values()) - {PROJECT["name"]}
    assert declared - {name_of(line) for line in lines} == set()
