"""Pixels to patch embeddings: the protocol, DINOv2 and its engines, the filter bank, loading, the device's queue."""
