"""Gets the extractor ready behind a service that already answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from backend.deadlines import remaining_s
from backend.errors import InspectionError, RequestTimeout, WeightsUnavailable
from backend.extractors.base import FeatureExtractor

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractorState:
    """What the loader can say now; ``degraded`` means no extractor, or not the one hoped for, and has a reason."""

    status: Literal["starting", "ok", "degraded"]
    extractor: FeatureExtractor | None = None
    reason: str | None = None


class ExtractorLoader:
    """Makes the extractor on a thread of its own: the service answers ``/health`` meanwhile.

    Args:
        make: Returns the extractor and, when it is not the one hoped for, why.
    """

    def __init__(self, make: Callable[[], tuple[FeatureExtractor, str | None]]) -> None:
        self._make = make
        self.state = ExtractorState(status="starting")  # what is known now
        self._loaded: Future[FeatureExtractor] = Future()
        self._thread = threading.Thread(target=self._load, name="extractor-loader", daemon=True)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to load, once."""
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def get(self) -> FeatureExtractor:
        """Return the extractor; waits while it is being loaded.

        Raises:
            WeightsUnavailable: If it cannot be had.
            RequestTimeout: If it is not there by the time the request must have ended.
        """
        self.start()
        try:
            return self._loaded.result(remaining_s())
        except TimeoutError:
            raise RequestTimeout(
                "The feature extractor is still being loaded. Send the request again in a while."
            ) from None

    def _load(self) -> None:
        try:
            extractor, reason = self._make()
            _log.info("extractor %s ready on %s", extractor.extractor_id, extractor.device)
        except InspectionError as error:
            _log.error("%s", error.sentence)
            self._fail(error)
        except Exception:
            _log.exception("the feature extractor could not be loaded")
            self._fail(WeightsUnavailable("The feature extractor could not be loaded; the service's log says why."))
        else:
            if reason:
                _log.warning("%s", reason)
            self.state = ExtractorState(status="degraded" if reason else "ok", extractor=extractor, reason=reason)
            self._loaded.set_result(extractor)

    def _fail(self, error: InspectionError) -> None:
        self.state = ExtractorState(status="degraded", reason=error.sentence)
        self._loaded.set_exception(error)


def require_cuda() -> None:
    """Raise RuntimeError if there is no CUDA device, or no PyTorch that could use one."""
    try:
        import torch
    except ImportError as error:
        raise RuntimeError('BDI_REQUIRE_CUDA is set, but PyTorch is missing: `pip install ".[torch]"`.') from error
    if not torch.cuda.is_available():
        raise RuntimeError("BDI_REQUIRE_CUDA is set, but PyTorch finds no CUDA device on this machine.")


def check_cuda_device(device: str) -> None:
    """Raise RuntimeError if the device ``cuda`` or ``cuda:N`` that BDI_DEVICE names is not there."""
    named = f"BDI_DEVICE is {device!r}, which cannot be used"
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(f'{named}: PyTorch is missing: `pip install ".[torch]"`.') from error
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= n_devices:
        raise RuntimeError(f"{named}: PyTorch finds {n_devices} CUDA devices on this machine. Set it to auto or cpu.")
