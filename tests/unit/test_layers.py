"""The one-way doors between the modules, kept by reading their imports."""

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

# The arithmetic: numpy, scipy, OpenCV and each other.
CORE = {
    "utils", "errors", "placement", "roi_mask", "coreset", "nearest", "patchcore", "whitening", "calib", "infer",
    "scoring", "calibrating",
}  # fmt: skip
# What the arithmetic may rest on, beside itself.
BENEATH = {"distances", "ladder", "model_key", "projection", "threads"}

# The exceptions, imported in a function or for a type only, so that the arithmetic can be imported without them.
ARROWS_OUTWARD = {
    "infer": {"backend.wiring", "backend.service"},  # infer_one needs the whole service
    "ladder": {"backend.bf16"},  # matrix units of the processor, where torch is there anyway
}

LIBRARY_HOMES = {
    "faiss": {"nearest.py"},
    "sklearn": {"nearest.py"},
    "torch": {
        "device_search.py",
        "features.py",
        "engines.py",
        "openvino_engine.py",
        "openvino_network.py",
        "bf16.py",
        "weights.py",
        "wiring.py",
    },
    "timm": {"features.py", "engines.py", "openvino_engine.py", "weights.py"},
    "openvino": {"openvino_engine.py"},
    "huggingface_hub": {"weights.py"},
    "PIL": {"image_codec.py"},
    "isal": {"png.py"},
    "pydantic_settings": {"settings.py"},
    "pydantic": {"settings.py", "schemas.py", "store_schemas.py", "audit_schemas.py", "routes/"},
    "fastapi": {"app.py", "server.py", "schemas.py", "http_errors.py", "routes/"},
    "starlette": {
        *("app.py", "middleware.py", "access.py", "access_log.py", "draining.py", "time_limits.py", "http_errors.py"),
        "routes/",
    },
    "uvicorn": {"server.py", "http_protocol.py"},
    "pythonjsonlogger": {"logs.py"},
    "concurrent_log_handler": {"logs.py"},
    "sqlite3": {"audit.py"},
    "matplotlib": {"report.py"},
    "filelock": {"storage.py", "jobs.py", "sweeping.py"},
    "pickle": set(),
}
# Hands its own environment on to the server that it starts, and tells of it.
MAY_KNOW_THE_ENVIRONMENT = {"demo.py", "demo_server.py"}


def imports(tree: ast.AST, *, at_import_time: bool = False) -> list[str]:
    """Return what a module imports, ``from a.b import c`` as ``a.b``; on request only what importing it imports."""
    found = []
    pending = [tree]
    while pending:
        node = pending.pop()
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_import_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append(node.module)
        pending += ast.iter_child_nodes(node)
    return found


def test_the_walk_sees_imports_in_functions_and_under_type_checking():
    tree = ast.parse("import a.b\ndef f():\n    from c import d\nif TYPE_CHECKING:\n    import e\n")
    assert sorted(imports(tree)) == ["a.b", "c", "e"]
    assert imports(tree, at_import_time=True) == ["a.b"]
    assert {f"{name}.py" for name in CORE} <= set(MODULES)


@pytest.mark.parametrize("name", sorted(CORE | BENEATH))
def test_the_arithmetic_knows_nothing_of_http_storage_networks_or_use_cases(name):
    ours = {module for module in imports(MODULES[f"{name}.py"]) if module.split(".")[0] == "backend"}
    outward = ARROWS_OUTWARD.get(name, set())
    assert outward.isdisjoint(imports(MODULES[f"{name}.py"], at_import_time=True))
    ours -= outward
    assert ours - {f"backend.{other}" for other in CORE | BENEATH} == set()
    libraries = {module.split(".")[0] for module in imports(MODULES[f"{name}.py"])} - {"backend"}
    heavy = {"torch", "timm", "openvino", "fastapi", "starlette", "pydantic", "PIL", "httpx", "filelock"}
    assert libraries.isdisjoint(heavy)


@pytest.mark.parametrize("name", ["utils", "errors", "model_key"])
def test_the_leaves_import_nothing_of_ours_but_errors(name):
    ours = {module for module in imports(MODULES[f"{name}.py"]) if module.split(".")[0] == "backend"}
    assert ours - {"backend.errors"} == set()


@pytest.mark.parametrize("library", LIBRARY_HOMES)
def test_a_heavy_library_lives_where_it_is_at_home(library):
    homes = LIBRARY_HOMES[library]
    users = {name for name, tree in MODULES.items() if library in {module.split(".")[0] for module in imports(tree)}}
    strangers = {name for name in users if name not in homes and f"{name.split('/')[0]}/" not in homes}
    assert strangers == set()


@pytest.mark.parametrize("library", ["faiss", "sklearn", "huggingface_hub"])
def test_a_library_that_is_optional_or_slow_is_imported_where_it_is_used(library):
    for tree in MODULES.values():
        assert library not in {module.split(".")[0] for module in imports(tree, at_import_time=True)}


def test_nobody_below_the_http_layer_knows_it():
    http = {
        "app", "schemas", "store_schemas", "audit_schemas", "middleware", "access", "access_log", "draining",
        "time_limits", "http_errors", "http_protocol", "server", "cli", "demo", "demo_server",
    }  # fmt: skip
    for name, tree in MODULES.items():
        if name.split(".")[0] in http or name.startswith("routes/"):
            continue
        known = {module for module in imports(tree) if module.startswith("backend.")}
        assert {module for module in known if module.split(".")[1] in http | {"routes"}} == set(), name


def test_modules_do_not_import_each_other_in_circles():
    graph = {
        "backend." + name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): {
            module for module in imports(tree, at_import_time=True) if module.startswith("backend.")
        }
        for name, tree in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for imported in graph.get(module, ()):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


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
loaded = {"torch", "timm", "openvino", "faiss", "sklearn", "matplotlib", "httpx"} & set(sys.modules)
assert not loaded, loaded
assert threading.active_count() == 1, threading.enumerate()
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_importing_does_nothing(tmp_path):
    """No file, no thread, no network weights and no environment: a BDI_ variable that is read would be refused."""
    names = [module.name for module in pkgutil.walk_packages(backend.__path__, "backend.")]
    assert {"backend.app", "backend.features", "backend.routes.inspection"} <= set(names)
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
