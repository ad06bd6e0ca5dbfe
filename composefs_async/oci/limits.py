"""What an import refuses as absurd; values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one image may make us do.  Each can be raised by whoever trusts the source."""

    max_ratio: float = 1000.0
    """Unpacked to packed size of a layer, looked at once it has unpacked to 64 MiB."""
    max_layer_size: int = 1 << 40
    """Of an unpacked layer, in bytes."""
    max_file_size: int = 1 << 40
    """Of one file in a layer, in bytes."""
    document_size: int = 4 << 20
    """Of each index, manifest and config, in bytes."""
