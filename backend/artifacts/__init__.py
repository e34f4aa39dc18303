"""Bytes on disk: the store and its locks, formats, layout, images, atomic files."""
