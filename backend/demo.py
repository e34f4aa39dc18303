"""A tour of the service: starts the real server, drives it over HTTP as a client would, and leaves a page to look at.

Without a folder the parts are rendered (``backend.samples``); with one they are real images in the layout of the
public benchmarks: ``train/good``, ``test/good``, ``test/<defect>``, and ``ground_truth/<defect>/*_mask.png`` if known.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from backend.errors import InspectionError
from backend.image_codec import decode_image, encode_png
from backend.report import Inspected, Report, tally, write_report
from backend.roi_mask import Annulus, shape_fields, shape_mask
from backend.samples import DEFECT_KINDS, Sample, machined_ring, render_defective, render_good

_SERVER = ["-m", "uvicorn", "backend.app:app"]
_ROI = {"role_id": "Demo", "roi_id": "part-1"}
_N_DEFECTIVE = 8
_N_NG_FOR_CALIBRATION = 2
_MAX_FIT, _MAX_TEST = 50, 24
_MAX_PIXELS = 40_000_000
_START_S, _CALL_S, _STOP_S = 300.0, 900.0, 10.0
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


class DemoError(Exception):
    """The demo cannot go on; the text says what to do about it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One image of the demo.

    Attributes:
        name: What table and page call it.
        data: The image file's bytes, as they are sent.
        image_bgr: The same as pixels, [H, W, 3] uint8.
        is_defective: The truth.
        defect_mask: [H, W] bool, or None when nobody knows where the defect is.
        was_resized: True when the file had another size than the first image learned.
    """

    name: str
    data: bytes = field(repr=False)
    image_bgr: NDArray[np.uint8] = field(compare=False, repr=False)
    is_defective: bool
    defect_mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    was_resized: bool = False


@dataclass(frozen=True, kw_only=True)
class PartSet:
    """What a demo shows.

    Attributes:
        title: What the parts are, for the page.
        mm_per_px: Millimetres per pixel of every image.
        ring: The area to inspect, or None for the whole image.
        fit: Good parts to learn from.
        good: Good parts that the memory never sees.
        defective: Defective parts.
        remark: What was left out, or empty.
    """

    title: str
    mm_per_px: float
    ring: Annulus | None
    fit: tuple[Part, ...]
    good: tuple[Part, ...]
    defective: tuple[Part, ...]
    remark: str = ""


def run_demo(
    *,
    data: Path | None = None,
    out: Path = Path("demo_output"),
    n_good: int = 30,
    keep_models: bool = False,
    mm_per_px: float = 0.2,
    console: Console | None = None,
) -> int:
    """Run the demo and return the exit code: 0, or 1 when something failed.

    Args:
        data: Folder of real images; None renders parts.
        out: Folder for ``index.html`` and the server's log.
        n_good: How many good parts to render; three quarters are learned from, the others held out; at least 8.
        keep_models: Keep the fitted model in ``out/models``; otherwise it goes away with the demo.
        mm_per_px: Millimetres per pixel; positive.
        console: Where to print; standard output by default.
    """
    if console is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # A code page without × must not end the demo.
        console = Console(width=None if sys.stdout.isatty() else 110)  # A file has room for the whole table.
    page = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="roi-inspector-", ignore_cleanup_errors=True) as passing:
            models_dir = (out / "models").resolve() if keep_models else Path(passing)
            with serving(models_dir, out / "server.log") as server:
                with _progress(console) as progress:
                    progress.add_task("preparing images, starting the server", total=None)
                    parts = rendered_parts(n_good, mm_per_px) if data is None else folder_parts(data, mm_per_px)
                    health = server.wait_until_ready()
                _say(console, extractor_line(health, os.environ.get("BDI_EXTRACTOR")))
                report = _tour(Api(server.client, parts), health, console)
        write_report(report, page)
    except KeyboardInterrupt:
        _say(console, "Interrupted. The server was stopped.")
        return 1
    except (DemoError, InspectionError, httpx.HTTPError, OSError, ValueError) as error:
        _say(console, f"The demo failed: {error}", style="bold red")
        _say(console, f"The server's log: {out / 'server.log'}")
        return 1
    _say(console, summary_line(report.items), style="bold")
    _say(console, f"Page: {page.resolve()}")
    return 0


def extractor_line(health: Mapping[str, Any], chosen: str | None) -> str:
    """Return which extractor runs and why.

    Args:
        health: The answer of ``GET /health``.
        chosen: What the user has set ``BDI_EXTRACTOR`` to, if anything.
    """
    why = health.get("reason") or (
        f"chosen by BDI_EXTRACTOR={chosen}" if chosen not in (None, "auto") else "its weights were found"
    )
    return f"Extractor: {health['model']} on {health['device']} ({why.rstrip('.')})"


def summary_line(items: Sequence[Inspected]) -> str:
    """Return how many decisions were right."""
    counts = tally(items)
    line = (
        f"{counts.n_passed} of {counts.n_good} unseen good parts passed, "
        f"{counts.n_found} of {counts.n_defective} unseen defects were found."
    )
    if counts.n_aside:
        line += (
            f" Not counted: {counts.n_aside} that helped to set the threshold, {counts.n_aside_right} of them found."
        )
    return line


def result_table(items: Sequence[Inspected]) -> Table:
    """Return the table that is printed: one row per image."""
    table = Table("image", "score", "threshold", "decision", "regions, mm²", "ms", header_style="bold")
    for column in table.columns:
        column.no_wrap, column.justify = True, "right"
    table.columns[0].justify = "left"
    for item in items:
        style = {"passed": "green", "found": "green", "not judged": "yellow"}.get(item.outcome, "bold red")
        areas = sorted((region.area_mm2 for region in item.regions), reverse=True)
        table.add_row(
            escape(item.name),
            f"{item.score:.3f}",
            "-" if item.threshold is None else f"{item.threshold:.3f}",
            f"[{style}]{(item.decision or '-').upper()} ({item.outcome})[/]",
            ", ".join(f"{area:.1f}" for area in areas[:2]) + (f" +{len(areas) - 2}" if len(areas) > 2 else "") or "-",
            f"{item.elapsed_ms:.0f}",
        )
    return table


def rendered_parts(n_good: int, mm_per_px: float) -> PartSet:
    """Return rendered parts: ``n_good`` good ones, three quarters of them to learn from, and eight defective ones.

    Raises:
        DemoError: If ``n_good`` is smaller than 8.
    """
    if n_good < 8:
        raise DemoError(f"--n-good is {n_good}; at least 8 good parts are needed, 30 are better.")
    n_fit = round(0.75 * n_good)
    good = [_rendered(f"good part {seed + 1}", render_good(seed, mm_per_px=mm_per_px)) for seed in range(n_good)]
    defective = []
    for index in range(_N_DEFECTIVE):
        sample = render_defective(1000 + index, DEFECT_KINDS[index % len(DEFECT_KINDS)], mm_per_px=mm_per_px)
        kind = str(sample.defect_kind).replace("_", " ")
        defective.append(_rendered(f"{kind}, {sample.defect_size_mm:.1f} mm", sample))
    return PartSet(
        title="Rendered grey-iron flanges",
        mm_per_px=mm_per_px,
        ring=machined_ring(),
        fit=tuple(good[:n_fit]),
        good=tuple(good[n_fit:]),
        defective=tuple(defective),
    )


def _rendered(name: str, sample: Sample) -> Part:
    is_defective = sample.defect_kind is not None
    return Part(
        name=name,
        data=encode_png(sample.image_bgr),
        image_bgr=sample.image_bgr,
        is_defective=is_defective,
        defect_mask=sample.defect_mask if is_defective else None,
    )


def folder_parts(folder: Path, mm_per_px: float) -> PartSet:
    """Return the images of a folder, thinned out evenly where there are many.

    Raises:
        DemoError: If the folder has not the expected layout.
    """
    layout = "expected are train/good, test/good and test/<defect>, each with images"
    train, good = _images(folder / "train" / "good"), _images(folder / "test" / "good")
    kinds = [kind for kind in sorted((folder / "test").glob("*")) if kind.is_dir() and kind.name != "good"]
    bad = [path for kind in kinds for path in _images(kind)]
    for found, place in ((train, "train/good"), (good, "test/good"), (bad, "test/<defect>")):
        if not found:
            raise DemoError(f"There are no images in {folder / place}; {layout}.")
    chosen = evenly(train, _MAX_FIT), evenly(good, _MAX_TEST), evenly(bad, _MAX_TEST)
    image_hw = _pixels(chosen[0][0]).shape[:2]
    fit, unseen, defective = (tuple(_read(path, folder, image_hw) for path in paths) for paths in chosen)
    n_resized = sum(part.was_resized for part in (*fit, *unseen, *defective))
    remark = (
        f"Uses {len(fit)} of {len(train)} images to learn from, {len(unseen)} of {len(good)} good and "
        f"{len(defective)} of {len(bad)} defective ones to test, evenly spaced."
    )
    if n_resized:
        remark += f" {n_resized} of other sizes were brought to the {image_hw[1]} × {image_hw[0]} px of the first."
    return PartSet(
        title=f"Images from {folder.resolve().name}",
        mm_per_px=mm_per_px,
        ring=None,
        fit=fit,
        good=unseen,
        defective=defective,
        remark=remark,
    )


def evenly(paths: Sequence[Path], n: int) -> list[Path]:
    """Return at most ``n`` of the paths, evenly spaced, the first one among them."""
    if len(paths) <= n:
        return list(paths)
    return [paths[index * len(paths) // n] for index in range(n)]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)


def _pixels(path: Path) -> NDArray[np.uint8]:
    return decode_image(path.read_bytes(), max_pixels=_MAX_PIXELS, name=path.name)


def _read(path: Path, folder: Path, image_hw: tuple[int, int]) -> Part:
    kind = path.parent.name
    data, image_bgr = path.read_bytes(), _pixels(path)
    mask_path = folder / "ground_truth" / kind / f"{path.stem}_mask.png"
    mask = _pixels(mask_path)[:, :, 0] > 127 if kind != "good" and mask_path.is_file() else None
    was_resized = image_bgr.shape[:2] != image_hw
    if was_resized:
        image_bgr = _resized(image_bgr, image_hw)
        data = encode_png(image_bgr)
    if mask is not None and mask.shape != image_hw:
        mask = _resized(mask.astype(np.uint8), image_hw) > 0
    return Part(
        name=f"{kind}/{path.name}",
        data=data,
        image_bgr=image_bgr,
        is_defective=kind != "good",
        defect_mask=mask,
        was_resized=was_resized,
    )


def _resized(pixels: NDArray[np.uint8], image_hw: tuple[int, int]) -> NDArray[np.uint8]:
    return cv2.resize(pixels, image_hw[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server process that this demo has started."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    log_path: Path

    def wait_until_ready(self) -> dict[str, Any]:
        """Return the answer of ``GET /health`` once the service has made up its mind.

        Raises:
            DemoError: If the process ends or does not get ready in time; shows the tail of its log.
        """
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise DemoError(
                    f"the server ended with exit code {self.process.returncode} at start.\n{self._advice()}"
                )
            try:
                health: dict[str, Any] = self.client.get("/health", timeout=5.0).json()
            except (httpx.TransportError, json.JSONDecodeError):
                health = {"status": "starting"}
            if health["status"] != "starting":
                return health
            time.sleep(0.2)
        raise DemoError(f"the server was not ready after {_START_S:.0f} s.\n{self._advice()}")

    def _advice(self) -> str:
        tail = "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        return (
            f"The end of {self.log_path}:\n{tail}\n"
            "What to do: the lines above name the cause. A missing module: pip install -r requirements.txt. A setting "
            "that is refused: correct or unset the environment variable BDI_..."
        )


@contextmanager
def serving(models_dir: Path, log_path: Path) -> Iterator[Server]:
    """Run the service in a process of its own for the ``with`` block, whatever becomes of the block.

    Args:
        models_dir: Folder for its artefacts.
        log_path: Where its output goes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"BDI_EXTRACTOR": "auto", **os.environ, "BDI_MODELS_DIR": str(models_dir), "PYTHONUTF8": "1"}
    command = [sys.executable, *_SERVER, "--host", "127.0.0.1", "--port", str(port)]
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            # A proxy of the environment must not come between two processes of one machine.
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_CALL_S, trust_env=False) as client:
                yield Server(client=client, process=process, log_path=log_path)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


class Api:
    """The three calls of the tour, as any client would make them."""

    def __init__(self, client: httpx.Client, parts: PartSet) -> None:
        self.parts = parts
        self._client = client
        self._form = {**_ROI, "mm_per_px": str(parts.mm_per_px)}
        if parts.ring is not None:
            self._form["shape"] = json.dumps(shape_fields(parts.ring))

    def fit(self) -> dict[str, Any]:
        """Learn the good parts, in place of whatever was learned before."""
        files = [("images", (part.name, part.data)) for part in self.parts.fit]
        return _answer(self._client.post("/fit_ok", data={**self._form, "mode": "replace"}, files=files))

    def calibrate(self, ng_scores: Sequence[float]) -> dict[str, Any]:
        """Set the threshold, from the service's own leave-one-image-out scores of the good parts."""
        body = {**_ROI, "mm_per_px": self.parts.mm_per_px, "ng_scores": list(ng_scores) or None}
        return _answer(self._client.post("/calibrate_ng", json=body))

    def infer(self, part: Part) -> dict[str, Any]:
        """Inspect one part."""
        return _answer(self._client.post("/infer", data=self._form, files={"image": (part.name, part.data)}))


def _answer(response: httpx.Response) -> dict[str, Any]:
    body = response.json() if "json" in response.headers.get("content-type", "") else {}
    if response.is_success:
        return dict(body)
    sentence = body.get("error") or body.get("detail") or response.text[:300]
    raise DemoError(f"{response.request.url.path} answered {response.status_code}: {sentence}")


def _tour(api: Api, health: Mapping[str, Any], console: Console) -> Report:
    """Fit, calibrate without and with NG, inspect everything; the page says the rest."""
    parts = api.parts
    if parts.remark:
        _say(console, parts.remark)
    step = max(1, len(parts.defective) // _N_NG_FOR_CALIBRATION)
    for_calibration = parts.defective[::step][:_N_NG_FOR_CALIBRATION]
    with _progress(console) as progress:
        learning = progress.add_task(f"learning {len(parts.fit)} good images", total=None)
        fit = api.fit()
        progress.update(learning, total=len(parts.fit), completed=len(parts.fit))
        inspecting = progress.add_task("inspecting", total=len(parts.good) + len(parts.defective))
        calibrations = [api.calibrate([])]
        calibrations.append(api.calibrate([api.infer(part)["score"] for part in for_calibration]))
        items = []
        for part in (*parts.good, *parts.defective):
            item = Inspected.from_answer(
                api.infer(part),
                name=part.name,
                is_defective=part.is_defective,
                image_bgr=part.image_bgr,
                inspected_mask=None if parts.ring is None else shape_mask(parts.ring, part.image_bgr.shape[:2]),
                defect_mask=part.defect_mask,
                note="Its score helped to set the threshold, so it is not counted." if part in for_calibration else "",
            )
            items.append(item)
            progress.advance(inspecting)
    console.print(result_table(items))
    return _report(parts, health, fit, calibrations, items)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _report(
    parts: PartSet,
    health: Mapping[str, Any],
    fit: Mapping[str, Any],
    calibrations: Sequence[Mapping[str, Any]],
    items: Sequence[Inspected],
) -> Report:
    n_ng = calibrations[-1]["n_ng"]
    thresholds = tuple(
        (name, float(calibration["threshold"]))
        for name, calibration in zip(("from good parts alone", f"with {n_ng} NG"), calibrations, strict=True)
    )
    facts = [
        ("Extractor", f"{health['model']} on {health['device']}"),
        ("Learned from", f"{fit['n_ok_total']} good images"),
        ("Memory", f"{fit['coreset_size']} of {fit['n_embeddings']} patches"),
        ("Patch grid", "{} × {}".format(*fit["token_shape"])),
        ("Scale", f"{parts.mm_per_px:g} mm per pixel"),
    ]
    for name, threshold in thresholds:
        judged = tally([item.judged_by(threshold) for item in items])
        right = f"{judged.n_passed} of {judged.n_good} passed, {judged.n_found} of {judged.n_defective} found"
        facts.append((f"Threshold {name}", f"{threshold:.3f}: {right}"))
    expected, at_most = (
        calibrations[-1][bound] for bound in ("expected_false_alarm_rate", "false_alarm_rate_upper_95")
    )
    facts.append(("False alarms to expect", f"{100 * expected:.1f} %, at most {100 * at_most:.1f} % (95 % sure)"))
    return Report(
        title="Inspection demo",
        lead=f"{parts.title}: {len(parts.good)} good and {len(parts.defective)} defective parts, after learning from "
        f"{len(parts.fit)} other good ones. The scores of {n_ng} of the defective ones helped to set the threshold.",
        caution=str(health.get("reason") or ""),
        facts=tuple(facts),
        notes=tuple(dict.fromkeys(str(note) for answer in (fit, *calibrations) for note in answer["warnings"])),
        thresholds=thresholds,
        items=tuple(items),
    )
