"""Where images come from."""

from __future__ import annotations

from .base import Blob, BlockingBlob, ImageSource, LocalBlob, ResolvedImage, StreamedBlob
from .layout import OciLayoutSource
from .opening import open_source

__all__ = [
    "Blob",
    "BlockingBlob",
    "ImageSource",
    "LocalBlob",
    "OciLayoutSource",
    "ResolvedImage",
    "StreamedBlob",
    "open_source",
]
