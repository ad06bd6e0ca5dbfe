"""Values that operations take and return, frozen and without I/O: of storing, mounting, checking, repair, gc, usage."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from typing import Literal

from .digest import Algorithm, ObjectId
from .findings import Finding

__all__ = [
    "Counters",
    "FsckResult",
    "GcResult",
    "ImportStats",
    "Lease",
    "MountOptions",
    "NameUsage",
    "NamedReference",
    "Path",
    "RepairAction",
    "RepairResult",
    "Space",
    "StoreOutcome",
    "StoredObject",
    "Unrepaired",
    "UpgradeResult",
    "Usage",
]

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
    objects_reflinked: int = 0
    """Of those stored, whose content is shared with the source's files."""
    bytes_reflinked: int = 0

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
            self.objects_reflinked + other.objects_reflinked,
            self.bytes_reflinked + other.bytes_reflinked,
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


# -- maintenance ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FsckResult:
    """What a check of a repository looked at and found; the counters are those of composefs-rs."""

    has_metadata: bool = True
    objects_checked: int = 0
    objects_corrupted: int = 0
    streams_checked: int = 0
    streams_corrupted: int = 0
    images_checked: int = 0
    images_corrupted: int = 0
    broken_links: int = 0
    missing_objects: int = 0
    findings: tuple[Finding, ...] = ()
    """What is wrong with meta.json, objects, streams, images and the rest, in this order, each sorted by path."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged; notices do not count."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are more than notices."""
        return tuple(finding for finding in self.findings if not finding.is_notice)

    @property
    def unread(self) -> tuple[Finding, ...]:
        """The findings that only say that something could not be read: whether it is damaged is not known."""
        return tuple(finding for finding in self.findings if finding.unread)


@dataclass(frozen=True, slots=True)
class GcResult:
    """What garbage collection has removed, or would remove; the counters are those of composefs-rs."""

    objects_removed: int = 0
    objects_bytes: int = 0
    """Size of their content in bytes."""
    images_pruned: int = 0
    """Names below ``images/``, whose object is not there, or goes."""
    streams_pruned: int = 0
    pruned: tuple[str, ...] = ()
    """All names that were pruned, ``streams/…`` and ``images/…``, sorted."""
    leftovers: tuple[str, ...] = ()
    """Temporary files and links of interrupted operations, sorted; not among the other counters."""
    objects_leased: int = 0
    """Nothing has a name that needs them, but an import that was interrupted stored them (`Lease`)."""
    mounted: tuple[str, ...] = ()
    """Ids of images that no reference leads to, and that stay because they are mounted; sorted."""
    objects_missing: int = 0
    """Names need them, and they are not there: fsck tells more."""
    unknown_roots: tuple[str, ...] = ()
    """Names that were given, but are no name of a stream or image, and kept nothing."""
    quarantines: tuple[str, ...] = ()
    """Directories of what repairs put aside, relative to the repository, the oldest first; not among the counters."""
    notes: tuple[Finding, ...] = ()
    """What is strange and has been left alone: references that lead nowhere, files that are no objects, and streams
    and images that are missing."""


@dataclass(frozen=True, slots=True)
class Space:
    """What some objects take."""

    objects: int = 0
    size: int = 0
    """Size of their content in bytes: what gc counts."""
    disk: int = 0
    """What the file system allotted to them, in bytes, shared extents counted each time."""


@dataclass(frozen=True, slots=True)
class NameUsage:
    """What one reference keeps.  ``total`` is what is `exclusive` and `shared` together."""

    category: str
    """``streams`` or ``images``."""
    reference: str
    """Below ``refs/``: ``oci/…`` for a tag, in the form of its file name."""
    name: str
    """Name of the stream or image that it leads to; two references can lead to the same."""
    exclusive: Space
    """What nothing else that has a name needs, however many references lead to this one."""
    shared: Space
    """What others need, too."""
    frees: Space
    """What a gc would delete beyond the garbage there is, if this reference alone were removed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a repository holds, and for whom."""

    names: tuple[NameUsage, ...]
    """Sorted by category and reference."""
    objects: Space
    """All."""
    garbage: Space
    """Objects that a gc would delete now."""
    leased: Space
    """Objects that only a lease keeps: of an import that was interrupted, or is running."""
    leftovers: Space
    """Temporary files that interrupted operations left among the objects, or that running ones have."""
    quarantine: Space
    """What repairs have put aside."""


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """What an upgrade has written, or would write."""

    upgraded: bool
    """False if there is a meta.json, perhaps since another process was faster; the rest tells what it says."""
    meta_json: bytes
    """The whole file; empty if nothing has been written."""
    algorithm: Algorithm
    secure: bool
    """Every object must be protected by fs-verity."""
    erofs_versions: tuple[int, ...]
    """The layouts of its images, the default first."""
    streams: dict[str, int]
    """How many there are of each form, by the month that it came up in; some may be too old, or damaged."""
    hidden_images: int
    """OCI images that have EROFS images, but none of the default layout: `composefs_async.oci.ensure_images`."""


@dataclass(frozen=True, slots=True)
class NamedReference:
    """A name below ``refs/`` that keeps what it leads to."""

    category: Literal["streams", "images"]
    name: str
    """Below ``refs/``."""
    target: str
    """The stream, or the id in hexadecimal of the image, that it means."""
    dangling: bool
    """The target or its object is not there."""


@dataclass(frozen=True, slots=True)
class RepairAction:
    """One thing that a repair did, or would do."""

    path: str
    """Relative to the repository: ``objects/xx/rest``, ``streams/NAME``, ``images/NAME``."""
    action: str
    """``replaced`` or ``restored`` (an object was corrupt or missing), ``linked`` (a name), ``rebuilt`` (an image),
    ``rewritten`` (a stream), ``quarantined``."""
    source: str = ""
    """Where content came from."""


@dataclass(frozen=True, slots=True)
class Unrepaired:
    """Something that is still wrong."""

    path: str
    reason: str
    remedy: str
    """What people can do."""
    unread: bool = False
    """It could not be read, and has been left alone."""


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What was wrong, what has been done about it, and what is left."""

    before: FsckResult
    after: FsckResult
    """A second check of everything; of a dry run, what one would find."""
    actions: tuple[RepairAction, ...]
    """In their order."""
    unrepaired: tuple[Unrepaired, ...]
    """What is wrong still, or would be."""
    affected_refs: tuple[str, ...]
    """References (``streams/refs/…``, ``images/refs/…``) that led to something damaged."""
    recovered_refs: tuple[str, ...]
    """References among them that lead to intact content again, or would."""
    problems: tuple[str, ...] = ()
    """Why a source could not help where it should have."""
    quarantine: str = ""
    """The directory in the repository that has what was replaced or removed; empty if there is none."""
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong any more, or would be."""
        return not self.unrepaired
