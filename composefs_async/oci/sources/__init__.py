"""Where images come from."""

from __future__ import annotations

from .base import Blob, ImageSource, LocalBlob, ResolvedImage, StreamedBlob
from .layout import OciLayoutSource

__all__ = ["Blob", "ImageSource", "LocalBlob", "OciLayoutSource", "ResolvedImage", "StreamedBlob"]
