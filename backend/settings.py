"""Every setting, each default written once. Only ``Settings()`` reads the environment, and only when it is built."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.calib import ScoreMode
from backend.imaging.placement import Resize

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s?#,\"'\[\]]+|[a-z]+://\[[0-9a-f:.]+\](:\d+)?")
_HOST_NAME = re.compile(r"\*|[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?")


class Settings(BaseSettings):
    """The service's settings; ``BDI_MODELS_DIR`` sets ``models_dir``, and so on."""

    model_config = SettingsConfigDict(env_prefix="BDI_", extra="ignore", frozen=True)

    backend_host: str = Field("127.0.0.1", description="Address that `roi-inspector serve` binds to.")
    backend_port: int = Field(8000, ge=0, le=65535, description="Port that `roi-inspector serve` binds to; 0 = any.")
    models_dir: Path = Field(Path("models"), description="Folder of the artefacts.")

    extractor: Literal["dinov2", "filter-bank", "auto"] = Field(
        "dinov2", description="`auto` takes DINOv2 if its weights can be had, else the filter bank, and says so."
    )
    weights: Path | None = Field(None, description="Weights file: timm safetensors, or dinov2_vits14_pretrain.pth.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    require_cuda: bool = Field(False, description="Refuse to start without a CUDA device.")
    engine: Literal["auto", "torch", "openvino"] = Field("auto", description="What computes the network.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="Arithmetic of the network.")
    threads: int = Field(0, ge=0, le=256, description="CPU threads that compute; 0 = one per core.")
    input_size: int = Field(384, ge=56, le=2048, description="Network input of a square ROI, px.")
    scales: Annotated[tuple[float, ...], NoDecode] = Field(
        (1.0,), min_length=1, max_length=3, description="Resizes whose grids are joined, e.g. 1.0,0.67."
    )
    resize: Resize = Field("aspect", description="`aspect` keeps a ROI's aspect ratio, `square` does not.")

    coreset_rate: float = Field(0.02, gt=0, le=1, description="Share of the patch embeddings that is kept.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Draws the coreset's first centre.")
    k: int = Field(1, ge=1, le=64, description="Neighbours that a distance is the mean of.")
    aligned: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Whether parts always lie in the same place in a ROI, so that patches are compared by position, "
        "from 8 good parts on; `auto`: a new ROI's images decide.",
    )
    blur_sigma: float = Field(1.0, ge=0, le=50, description="Blur of the anomaly map, px of the image.")
    score_mode: Literal["auto", ScoreMode] = Field(
        "auto",
        description="Statistic of the map that is the score. `auto`: `percentile` until a ROI is calibrated, `area` "
        "from then on, unless the first calibration says otherwise or brings scores.",
    )
    score_percentile: float = Field(99.0, gt=0, le=100, description="Percentile of the map that is the score.")
    area_mm2_thr: float = Field(1.0, ge=0, le=1e6, description="Area that counts, mm²: smaller regions are dropped.")

    image_check: Literal["reject", "warn", "off"] = Field(
        "reject",
        description="What happens to an image whose light, sharpness, contrast, colour or layout are far from those of "
        "all good parts: `ng` with reject_reason `image`, only a warning, or nothing.",
    )
    min_ok_samples: int = Field(
        2, ge=0, le=100_000, description="Good parts that a threshold from the service's own scores needs; at least 2."
    )

    cache_max_entries: int = Field(50, ge=1, le=100_000, description="ROIs kept in memory.")
    queue_length: int = Field(64, ge=1, le=10_000, description="Inspections that may wait; one more is answered 503.")
    batch_wait_ms: float = Field(
        2.0, ge=0, le=100, description="How long an inspection waits for others to share its batch, ms; GPU only."
    )
    concurrent_jobs: int = Field(2, ge=1, le=64, description="Background calls that run at a time.")
    max_pixels: int = Field(40_000_000, ge=64, le=170_000_000, description="Largest image, px.")
    max_held_mpx: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Most pixels that all calls together hold decoded, megapixels; one more image waits a few seconds, "
        "then it is answered 503. 0 = half of the memory that the process may use, at 16 bytes a pixel.",
    )
    max_body_mb: int = Field(512, ge=1, le=65_536, description="Largest request body, MB.")
    max_held_mb: int = Field(
        2048,
        ge=1,
        le=1_048_576,
        description="Most that uploads of calls and waiting jobs hold together, MB; small ones may take a tenth more.",
    )
    max_disk_gb: float = Field(0.0, ge=0, le=1e6, description="Most that the models folder may hold, GB; 0 = no limit.")
    keep_versions: int = Field(
        10,
        ge=0,
        le=1000,
        description="Most earlier versions of a ROI (memory and calibration) that are kept for a way back; they make "
        "room where the disk is full. 0 = none.",
    )
    max_images: int = Field(500, ge=1, le=1000, description="Most images in one request.")
    request_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="Longest time a request may take, s; background jobs have no limit."
    )
    body_timeout_s: float = Field(30.0, gt=0, le=3600, description="Longest pause in an upload, s.")
    min_upload_kb_s: float = Field(
        4.0,
        ge=0,
        le=1e6,
        description="Slowest upload, kB/s on average after `body_timeout_s`; slower ones are ended. 0 = any.",
    )
    shutdown_s: int = Field(30, ge=1, le=3600, description="How long `roi-inspector serve` waits for calls to end, s.")

    api_keys: SecretStr | None = Field(
        None, description="Keys that may call, `role:secret`, by commas; roles `inspect`, `admin`; without: everybody."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_file: Path | None = Field(None, description="File that the log goes to beside standard error.")
    log_max_mb: float = Field(10.0, gt=0, le=10_000, description="Size at which the log file is rotated, MB.")
    log_files: int = Field(5, ge=1, le=1000, description="Rotated log files that are kept.")
    history: int = Field(
        20_000,
        ge=0,
        le=10_000_000,
        description="Decisions that are kept of each ROI, without images, for `GET /decisions`; rates and quantiles "
        "for `GET /stats` reach back 400 days. 0 keeps nothing.",
    )
    audit: bool = Field(False, description="Keep every decision, for `GET /audit`.")
    audit_file: Path | None = Field(
        None, description="SQLite file of the decisions; `audit.sqlite3` in the models folder by default."
    )

    audit_images_mb: float = Field(
        500.0,
        ge=0,
        le=1e6,
        description="Most that the images kept beside the decisions take, MB; the oldest of whatever has most make "
        "room. 0 keeps none.",
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Web origins that may call, separated by commas; none by default."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names under which the service answers, beside those of the loopback; none: any, but over loopback "
        "without keys only the loopback's.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."
    )

    @model_validator(mode="before")
    @classmethod
    def _strip(cls, values: object) -> object:
        """Take blanks and quotes from around texts: ``set NAME="value" `` of Windows makes them part of the value."""
        if not isinstance(values, dict):
            return values
        return {name: _stripped(value) if isinstance(value, str) else value for name, value in values.items()}

    @field_validator("cors_origins", "allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split_texts(cls, value: object) -> object:
        return tuple(_stripped(part) for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """Return origins as browsers write them: in lower case, without a slash at the end."""
        origins = tuple(origin.rstrip("/").lower() for origin in origins)
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no web origin such as http://panel or http://panel:8080")
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST_NAME.fullmatch(host):
                raise ValueError("allowed_hosts are names or addresses, without http:// and without a port, or *")
        return hosts

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(proxy, strict=False)) for proxy in proxies)

    @field_validator("scales", mode="before")
    @classmethod
    def _split_scales(cls, value: object) -> object:
        return tuple(float(part) for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if scales[0] != 1.0 or not all(0.25 <= scale <= 2 for scale in scales):
            raise ValueError("scales must begin with 1.0 and lie in 0.25 … 2")
        return scales

    @field_validator("weights", "api_keys", "log_file", "audit_file", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value


def unknown_variables() -> list[str]:
    """Return the names in the environment that begin like those of settings, and that no setting has."""
    known = {f"BDI_{name}".upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.upper().startswith("BDI_") and name.upper() not in known)


def _stripped(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text
