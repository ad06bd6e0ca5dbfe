"""What operations return and report: frozen values without behaviour, no I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from .digest import Algorithm, ObjectId
from .findings import KINDS

__all__ = [
    "Finding",
    "FsckResult",
    "GcResult",
    "ImportStats",
    "Lease",
    "NameUsage",
    "NamedReference",
    "RepairAction",
    "RepairResult",
    "Space",
    "StoreOutcome",
    "StoredObject",
    "Unrepaired",
    "UpgradeResult",
    "Usage",
]


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
class Finding:
    """One thing that a check found wrong; which of the optional fields are set follows from *kind*."""

    kind: str
    """A name in `composefs_async.findings.KINDS`."""
    path: str
    """Relative to the repository: ``objects/xx/rest``, ``streams/NAME``, ``images/refs/a/b``, ``meta.json``."""
    object_id: str = ""
    """In hexadecimal: of the object that is missing, or that a name leads to."""
    name: str = ""
    """Of a named reference of the stream at *path*, or an OCI tag."""
    digest: str = ""
    """The content digest of a config or layer: of a layer its diff_id."""
    expected: str = ""
    measured: str = ""
    detail: str = ""
    cause: str = ""
    """What is behind *detail*, where that is what composefs-rs says and tells less."""

    @property
    def is_notice(self) -> bool:
        """Whether nothing is damaged."""
        return KINDS[self.kind].notice

    @property
    def text(self) -> str:
        """One line for people, ``fsck: <kind>: …``; of the kinds that composefs-rs knows exactly its own."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return f"fsck: {self.kind}: {KINDS[self.kind].text.format_map(values)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``type``, ``path``, the optional fields that are set, and ``notice`` if it is one."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "kind"}
        set_values = {name: value for name, value in values.items() if value}
        return {"type": self.kind, **set_values, **({"notice": True} if self.is_notice else {})}


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


@dataclass(frozen=True, slots=True)
class GcResult:
    """What garbage collection has removed, or would remove; the counters are those of composefs-rs."""

    objects_removed: int = 0
    objects_bytes: int = 0
    """Of their content."""
    images_pruned: int = 0
    """Names below ``images/``, whose object is not there, or goes."""
    streams_pruned: int = 0
    pruned: tuple[str, ...] = ()
    """The same names, ``streams/…`` and ``images/…``, sorted."""
    leftovers: tuple[str, ...] = ()
    """Temporary files and links of interrupted operations, sorted; not among the other counters."""
    objects_leased: int = 0
    """Nothing has a name that needs them, but an import that was interrupted stored them (`Lease`)."""
    objects_missing: int = 0
    """Names need them, and they are not there: fsck tells more."""
    notes: tuple[Finding, ...] = ()
    """What is strange and has been left alone: references that lead nowhere, files that are no objects, and streams
    and images that are missing."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Keeps what an import that was interrupted, or runs, has stored and not yet named."""

    manifest_digest: str
    reference: str
    """Where the image comes from."""
    started: int
    """Objects that were stored since then are kept; in nanoseconds since 1970, by the clock of the file system."""
    expires: float
    """In seconds since 1970."""
    layers: dict[str, ObjectId]
    """Layers that are whole, by diff_id, and their streams."""


@dataclass(frozen=True, slots=True)
class Space:
    """What some objects take."""

    objects: int = 0
    size: int = 0
    """Of their content, in bytes: what gc counts."""
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
    """Of the stream or image that it leads to; two references can lead to the same."""
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
    """Those that a gc would delete now."""
    leased: Space
    """Those that only a lease keeps: of an import that was interrupted, or is running."""
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


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What was wrong, what has been done about it, and what is left."""

    before: FsckResult
    after: FsckResult
    """A second check of everything; after a dry run the same as *before*."""
    actions: tuple[RepairAction, ...]
    """In their order."""
    unrepaired: tuple[Unrepaired, ...]
    """What is wrong still, or would be."""
    hurt: tuple[str, ...]
    """References (``streams/refs/…``, ``images/refs/…``) that led to something damaged."""
    whole: tuple[str, ...]
    """Those of them that are whole again, or would be."""
    problems: tuple[str, ...] = ()
    """Why a source could not help where it should have."""
    quarantine: str = ""
    """The directory in the repository that has what was replaced or removed; empty if there is none."""
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong any more, or would be."""
        return not self.unrepaired
