"""Bytes on disk: formats, layout, images, atomic files, locks."""
