"""Measurements of the service: not part of what is installed."""
