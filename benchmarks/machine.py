"""The machine that a figure was measured on, and where figures go: JSON, and the marked blocks of a document."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.seeded_weights import Weights

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
_PACKAGES = ("numpy", "torch", "timm", "openvino", "faiss-cpu", "opencv-python-headless", "fastapi", "uvicorn")


def cuda_device() -> str | None:
    """Return the name of the CUDA device, or None where there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def machine_facts() -> dict[str, Any]:
    """Return what a reader needs to know of the machine to compare figures with those of another one."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", cpuinfo, re.MULTILINE))
    flags = set(fields.get("flags", "").split())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def network_facts(weights: Weights) -> dict[str, Any]:
    """Return the facts of the machine, and what computes the network with which weights."""
    return {
        **machine_facts(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "cuda": cuda_device(),
        "weights": weights.title,
    }


def describe(facts: Mapping[str, Any]) -> str:
    """Return the facts of ``network_facts`` as text for a document."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    load = facts["load_average"]
    return (
        f"Measured {facts['date']} on {facts['processor']}, {facts['cores']} cores ({', '.join(facts['flags'])}), "
        f"{facts['system']}; CUDA device: {facts['cuda'] or 'none'}. "
        + ("" if load is None else f"Load average at the start: {load:.1f}. ")
        + f"Python {facts['python']}, {packages}. Network with {facts['weights']}."
    )


def write_json(path: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the facts of the machine and one object per row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns after the first are aligned to the right, the last to the left."""
    rulers = ["---", *["---:"] * (len(headings) - 2), "---"]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rulers, *cells])


def update_block(document: Path, name: str, text: str) -> None:
    """Put a text between the markers ``<!-- name -->`` and ``<!-- /name -->`` of a document.

    Raises:
        ValueError: If the document does not hold the two markers, once.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = document.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in after:
        raise ValueError(f"{document} must hold {begin} and {end}, once.")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8", newline="\n")
