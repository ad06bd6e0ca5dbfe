"""What an import refuses as absurd; values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from .filesystem import MAX_MEMBERS
from .importing.decompress import MAX_RATIO, MAX_SIZE, MAX_WINDOW
from .jsondoc import DOCUMENT_LIMIT
from .tar.header import MAX_FILE_SIZE

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one image may make us do.  Each can be raised by whoever trusts the source."""

    max_ratio: float = MAX_RATIO
    """Unpacked to packed size of a layer, looked at once it has unpacked to 64 MiB."""
    max_layer_size: int = MAX_SIZE
    """Size of an unpacked layer, in bytes."""
    max_file_size: int = MAX_FILE_SIZE
    """Size of one file in a layer, in bytes."""
    max_window: int = MAX_WINDOW
    """Window of a zstd frame in a layer, in bytes of memory; the powers of two from 1 KiB to 2 GiB count."""
    max_members: int = MAX_MEMBERS
    """Members of all layers of an image together; each takes some 0.75 KiB of memory while the image is made."""
    document_size: int = DOCUMENT_LIMIT
    """Size of each index, manifest and config, in bytes."""
