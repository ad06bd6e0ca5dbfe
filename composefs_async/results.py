"""What storing, importing and mounting take and return: frozen values, no I/O."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field

from .digest import ObjectId

__all__ = ["Counters", "ImportStats", "Lease", "MountOptions", "Path", "StoreOutcome", "StoredObject"]

Path = str | os.PathLike[str]
"""A path of the file system, relative to the working directory or absolute."""


class StoreOutcome(enum.IntEnum):
    """How an object came to be in place."""

    STORED = 0
    """It was not there and has been written."""
    PRESENT = 1
    """It was there already."""
    REPLACED = 2
    """Something corrupt stood at its path and has been replaced atomically."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that is in place, but survives a power loss only after a `sync`."""

    id: ObjectId
    size: int
    """In bytes."""
    outcome: StoreOutcome


@dataclass(frozen=True, slots=True)
class ImportStats:
    """What an import did.  Values of several layers can be added."""

    objects_stored: int = 0
    objects_present: int = 0
    objects_replaced: int = 0
    """Corrupt objects that were found in place and replaced."""
    bytes_stored: int = 0
    """Content of the objects stored or replaced."""
    bytes_present: int = 0
    bytes_inline: int = 0
    """Kept inside the splitstream: headers, small files, padding."""
    layers_imported: int = 0
    layers_present: int = 0
    """Layers that were there and have not been read again."""
    bytes_read: int = 0
    """Packed bytes taken from the source."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Time per stage, added over worker threads, so that it can exceed the time that passed."""

    def __add__(self, other: ImportStats) -> ImportStats:
        stages = self.seconds | {
            stage: self.seconds.get(stage, 0.0) + seconds for stage, seconds in other.seconds.items()
        }
        return ImportStats(
            self.objects_stored + other.objects_stored,
            self.objects_present + other.objects_present,
            self.objects_replaced + other.objects_replaced,
            self.bytes_stored + other.bytes_stored,
            self.bytes_present + other.bytes_present,
            self.bytes_inline + other.bytes_inline,
            self.layers_imported + other.layers_imported,
            self.layers_present + other.layers_present,
            self.bytes_read + other.bytes_read,
            stages,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """Keeps what an import that was interrupted, or runs, has stored and not yet named."""

    manifest_digest: str | None
    """None for a lease that was begun by `Repository.lease`."""
    reference: str
    """Where the image comes from; for the others the name of the lease."""
    started: int
    """Objects that were stored since then are kept; in nanoseconds since 1970, by the clock of the file system."""
    expires: float
    """In seconds since 1970."""
    layers: dict[str, ObjectId]
    """Layers that are whole, by diff_id, and their streams."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How an image is to be mounted; without arguments read-only, with the owners that it has."""

    upper: Path | None = None
    """A directory that keeps what is changed in the mounted tree."""
    work: Path | None = None
    """An empty directory on the file system of *upper*, which overlayfs uses."""
    read_write: bool = False
    """Whether the mount can be written; needs *upper* and *work*."""
    idmap: int | None = None
    """A descriptor of the user namespace that maps the owners of files; it stays the caller's."""

    def __post_init__(self) -> None:
        if (self.upper is None) != (self.work is None):
            raise ValueError("upper and work are given both or not at all")
        if self.read_write and self.upper is None:
            raise ValueError("a mount that can be written needs upper and work")


@dataclass(frozen=True, slots=True)
class Counters:
    """Work of one open repository since it was opened, in a form for exporters of metrics: each only grows."""

    objects_stored: int
    """Objects that were not there and have been written."""
    objects_present: int
    """Objects that were asked to be stored and were there already."""
    objects_replaced: int
    """Corrupt objects that were replaced."""
    bytes_written: int
    """Size of the objects stored and replaced, in bytes."""
    flushes: int
    """Calls of syncfs."""
    flush_requests: int
    """Operations that waited for a flush; concurrent ones share one."""
