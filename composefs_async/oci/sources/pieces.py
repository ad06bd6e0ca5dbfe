"""Pieces of local blobs; blocks."""

from __future__ import annotations

import os

from .base import LocalBlob

__all__ = ["read_piece"]


def read_piece(blob: LocalBlob, at: int, size: int) -> bytes:
    """Read at most *size* bytes of a blob from *at* on; none at its end."""
    return os.pread(blob.fd, max(min(size, blob.size - at), 0), blob.offset + at)
