"""Anomaly inspection of canonical ROI images with PatchCore: learn what is normal, then measure what is not."""

__version__ = "0.1.0"
