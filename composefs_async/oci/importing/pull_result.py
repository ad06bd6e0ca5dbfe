"""What a pull gives back."""

from __future__ import annotations

from dataclasses import dataclass

from ...digest import ObjectId
from ...results import ImportStats
from .layers import LayerResult

__all__ = ["PullResult"]


@dataclass(frozen=True, slots=True)
class PullResult:
    """An image that is in place, named and durable."""

    manifest_digest: str
    manifest_id: ObjectId
    """Id of the manifest's stream."""
    config_digest: str
    config_id: ObjectId
    image_id: ObjectId | None
    """Id of the EROFS image in the repository's default layout; None for an artifact, or if none was made."""
    tag: str
    stats: ImportStats
    """Counts of all layers together."""
    layers: tuple[LayerResult, ...]
    """In the order of the config."""
    source: str = ""
    """The host that the image came from, if it came from a registry."""
    bytes_fetched: int = 0
    """Bytes of layers that came over the network, also those that were thrown away."""
    bytes_resumed: int = 0
    """Bytes of layers that an earlier pull had fetched before it was stopped."""
    manifest_made: bool = False
    """The source has no manifest, and this one was made of what it has."""
    layers_partial: int = 0
    """Layers of which parts were fetched: their diff_ids were checked, and their digests as shipped were not."""
