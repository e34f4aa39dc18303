"""Rendered parts, and the tour that inspects them with a real server."""
