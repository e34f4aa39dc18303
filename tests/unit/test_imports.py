"""What may know what: the import contracts of pyproject.toml, and what importing does."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import backend

ROOT = Path(backend.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}

# The settings, and the demo, which hands its own environment on to the server that it starts, and reports it.
MAY_KNOW_THE_ENVIRONMENT = {"settings.py", "demo/tour.py", "demo/service_process.py"}


def test_the_contracts_of_pyproject_hold():
    # In a process of its own: import-linter configures the logging of the one that it runs in.
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    run = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_module_of_ours_hides_one_of_pythons_or_of_a_dependency():
    """``cd backend && uvicorn app:app`` puts the folder itself on the path."""
    ours = {module.name for module in pkgutil.iter_modules([str(ROOT)])}
    assert ours.isdisjoint(sys.stdlib_module_names)
    elsewhere = [each for each in sys.path if each and Path(each).resolve() not in (ROOT, ROOT.parent)]
    installed = {module.name for module in pkgutil.iter_modules(elsewhere)}
    assert ours & installed == set()


@pytest.mark.parametrize("folder", sorted(path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()))
def test_the_init_of_a_folder_holds_one_sentence_and_nothing_else(folder):
    (sentence,) = ast.parse((ROOT / folder / "__init__.py").read_text("utf-8")).body
    assert isinstance(sentence, ast.Expr)
    assert isinstance(sentence.value, ast.Constant)


@pytest.mark.parametrize("name", MODULES)
def test_only_the_settings_read_the_environment(name):
    if name in MAY_KNOW_THE_ENVIRONMENT:
        return
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"environ", "environb", "getenv"}
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert {alias.name for alias in node.names}.isdisjoint({"environ", "environb", "getenv"})


def test_settings_are_built_in_a_function_and_never_while_a_module_is_imported():
    for name, tree in MODULES.items():
        pending = list(tree.body)
        while pending:
            node = pending.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "Settings"), name
            pending += ast.iter_child_nodes(node)


IMPORT_ALL = """
import importlib, sys, threading
import backend.app
loaded = {"torch", "timm", "openvino", "faiss", "sklearn", "matplotlib"} & set(sys.modules)
assert not loaded, loaded
assert threading.active_count() == 1, threading.enumerate()
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_importing_does_nothing(tmp_path):
    """No file, no thread, no network weights and no environment: a BDI_ variable that is read would be refused."""
    names = [module.name for module in pkgutil.walk_packages(backend.__path__, "backend.")]
    assert {"backend.app", "backend.features", "backend.api.inspection"} <= set(names)
    ours, libraries = tmp_path / "ours", tmp_path / "libraries"
    for folder in (ours / "home", ours / "tmp", ours / "work", libraries):
        folder.mkdir(parents=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name in {"PATH", "LD_LIBRARY_PATH", "SYSTEMROOT"}},
        "HOME": str(ours / "home"),
        "TMPDIR": str(ours / "tmp"),
        "PYTHONPATH": str(ROOT.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLCONFIGDIR": str(libraries),  # Libraries keep caches of their own.
        "TORCHINDUCTOR_CACHE_DIR": str(libraries),
        "BDI_DEVICE": "nonsense",
        "BDI_BACKEND_PORT": "nonsense",
        "BDI_MODELS_DIR": str(ours / "models"),
    }
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names], cwd=ours / "work", env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert [path for path in ours.rglob("*") if path.is_file()] == []
    assert sorted(path.name for path in ours.iterdir()) == ["home", "tmp", "work"]
