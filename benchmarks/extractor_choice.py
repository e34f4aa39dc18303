"""The extractor that a command line names: one of the service's own, or any class that obeys its protocol."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from backend.extractors.base import FeatureExtractor
from backend.imaging.placement import Resize

OWN_EXTRACTORS = ("filter-bank", "dinov2")
"""Names that the service's own settings know."""


class ExtractorError(Exception):
    """A class cannot be used as an extractor; the text says why."""


def load_extractor(spec: str, *, input_size: int, resize: Resize) -> FeatureExtractor:
    """Return an extractor of the class that ``package.module:Class`` names.

    It is made with ``input_size=`` and ``resize=`` where its signature takes them, and with nothing else.

    Raises:
        ExtractorError: If there is no such class, it cannot be made, or it lacks members of ``FeatureExtractor``.
    """
    cls = extractor_class(spec)
    offered = {"input_size": input_size, "resize": resize}
    arguments = {name: value for name, value in offered.items() if name in inspect.signature(cls).parameters}
    try:
        extractor: FeatureExtractor = cls(**arguments)
    except Exception as error:  # Somebody else's class: whatever it raises is what the user has to read.
        raise ExtractorError(f"--extractor {spec}: it cannot be made: {error}") from error
    missing = [name for name in _members() if not hasattr(extractor, name)]
    if missing:
        raise ExtractorError(
            f"--extractor {spec}: it lacks {', '.join(missing)}; FeatureExtractor in backend/extractors/base.py says "
            "what an extractor has."
        )
    return extractor


def extractor_class(spec: str) -> type[Any]:
    """Return the class that ``package.module:Class`` names.

    Raises:
        ExtractorError: If there is none.
    """
    module_name, _, class_name = spec.partition(":")
    if not module_name or not class_name:
        raise ExtractorError(
            f"--extractor {spec}: name {' or '.join(OWN_EXTRACTORS)}, or a class as package.module:Class."
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ExtractorError(f"--extractor {spec}: {module_name} cannot be imported: {error}.") from error
    cls = getattr(module, class_name, None)
    if not inspect.isclass(cls):
        raise ExtractorError(f"--extractor {spec}: {module_name} has no class {class_name}.")
    return cls


def takes_input_size(spec: str) -> bool:
    """Return whether an extractor can be made for another size of the network input; raises as ``extractor_class``."""
    return spec in OWN_EXTRACTORS or "input_size" in inspect.signature(extractor_class(spec)).parameters


def _members() -> list[str]:
    methods = [name for name, value in vars(FeatureExtractor).items() if inspect.isfunction(value)]
    return [*FeatureExtractor.__annotations__, *(name for name in methods if not name.startswith("_"))]
