"""What a check can find: one table of the kinds of damage, their names, texts and counters; no I/O.

Owns what each kind is called and how it reads.  Does not own what leads to findings (`composefs_async._maintenance`,
`composefs_async.oci.image_fsck`).

The kinds that are not below a comment "ours" are those of composefs-rs, with exactly its names and texts.

What a repair cannot mend has a remedy of its own; all others are gone after a repair from a source that has the
content, or from nothing but the repository where names and images can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from .digest import ObjectId

__all__ = ["KINDS", "Finding", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How findings of one kind read and count."""

    text: str
    """What follows ``fsck: <kind>: ``, made of the fields of a `Finding`."""
    corrupts: bool = False
    """The object, stream or image at its path counts as corrupted, once however much is wrong with it."""
    counter: str = ""
    """A counter of `FsckResult` that each finding raises: ``broken_links`` or ``missing_objects``."""
    notice: bool = False
    """Nothing is damaged: the repository stays ok."""
    remedy: str = ""
    """What people can do, where a repair leaves it even if there is a source that has the content."""


_DETAIL = "{path}: {detail}"
_MISSING = "missing_objects"
_REPAIR = "repair it from a repository, an image directory or a directory of files that has the content"
_READ = (
    "it could not be read: look at permissions, the disk and the kernel's log, and check again; "
    "what stays unreadable is replaced by a repair from where the content is"
)
_METADATA = "put the right meta.json back, or move this one away: 'composefs-async upgrade' writes one that fits"
_MALFORMED = (
    "layers, configs and manifests of images are mended from an image directory that has them; "
    "anything else was written so: 'composefs-async gc' removes it when no reference leads to it"
)
_PULL = "'composefs-async oci pull' the image again"
_UNTAG = "the image was made so: 'composefs-async oci untag' it"

KINDS: dict[str, Kind] = {
    # -- meta.json
    "metadata-parse-failed": Kind(_DETAIL, remedy=_METADATA),
    "metadata-algorithm-mismatch": Kind(
        "{path}: expected {expected}, repository opened as {measured}", remedy=_METADATA
    ),
    # -- objects
    "object-invalid-name": Kind(_DETAIL, corrupts=True),
    "object-open-failed": Kind(_DETAIL, corrupts=True),
    "object-digest-mismatch": Kind("{path}: measured {measured}", corrupts=True),
    "object-verity-failed": Kind(_DETAIL, corrupts=True),
    "object-verity-missing": Kind("{path}", corrupts=True),
    # -- names
    "entry-not-symlink": Kind("{path}", corrupts=True),
    "broken-symlink": Kind(
        "{path}",
        corrupts=True,
        counter="broken_links",
        remedy="repair it from a repository that has the object, or give it up: "
        "'composefs-async refs prune --dangling' removes references, 'composefs-async gc' other names",
    ),
    "stat-failed": Kind(_DETAIL, remedy="see to it that it can be read, or remove it"),
    "unexpected-file-type": Kind(_DETAIL),
    # ours: composefs-rs goes by the end of a target alone, whatever stands before it
    "link-target-invalid": Kind(
        "{path}: leads to {detail}, expected {expected}",
        corrupts=True,
        remedy="'composefs-async refs add --replace' the reference, or remove it",
    ),
    # -- streams
    "stream-open-failed": Kind(_DETAIL, corrupts=True, remedy=_MALFORMED),
    "stream-read-failed": Kind(_DETAIL, corrupts=True),
    "missing-object-ref": Kind("{path}: {object_id}", counter=_MISSING),
    "missing-named-ref": Kind("{path}: ref {name}: {object_id}", counter=_MISSING),
    "object-check-failed": Kind("{path}: {object_id}: {detail}"),
    # ours: composefs-rs does not unpack streams
    "stream-content-invalid": Kind(_DETAIL, corrupts=True, remedy=_MALFORMED),
    "stream-size-mismatch": Kind(
        "{path}: the stream claims {expected} bytes, but has {measured}", corrupts=True, remedy=_MALFORMED
    ),
    "stream-digest-mismatch": Kind("{path}: the content has the digest {measured}", corrupts=True),
    "stream-tail-missing": Kind("{path}: the last {detail} bytes of the tar, all zeros, were not kept", corrupts=True),
    "stream-digest-unknown": Kind(
        "{path}: named after a packed layer of an artifact, of which only the tar is kept",
        notice=True,
        remedy="nothing need be done",
    ),
    # ours: gc of composefs-rs follows names, and deletes what a stream without one needs
    "named-ref-unlinked": Kind("{path}: ref {name}: {object_id} has lost its name {expected}"),
    "named-stream-invalid": Kind("{path}: ref {name}: stream {object_id}: {detail}"),
    "named-image-invalid": Kind("{path}: ref {name}: image {object_id}: {detail}", remedy=_PULL),
    # -- images
    "image-open-failed": Kind(_DETAIL, corrupts=True),
    "image-read-failed": Kind(_DETAIL, corrupts=True),
    "image-invalid": Kind(_DETAIL, corrupts=True, remedy=_MALFORMED),
    "image-missing-object": Kind("{path}: {object_id}", counter=_MISSING),
    # ours: an image is mounted and checked by its name
    "image-name-mismatch": Kind("{path}: leads to image {object_id}", corrupts=True),
    # ours: not in the way, and not removed by gc of composefs-rs
    "leftover": Kind(
        "{path}: of an interrupted operation, or of one that is running",
        notice=True,
        remedy="'composefs-async gc' removes it",
    ),
    "stray-entry": Kind(_DETAIL, notice=True, remedy="remove it, unless you know what it is for"),
    # -- images of OCI; *name* is the tag
    "manifest-read-failed": Kind("{name}: {detail}"),
    "manifest-digest-mismatch": Kind("{name}: expected {expected}, got {measured}"),
    "manifest-parse-failed": Kind("{name}: {detail}", remedy=_UNTAG),
    "config-ref-missing": Kind("{name}: {digest}", remedy=_PULL),
    "config-read-failed": Kind("{name}: {detail}"),
    "config-digest-mismatch": Kind("{name}: expected {expected}, got {measured}"),
    "config-parse-failed": Kind("{name}: {detail}", remedy=_UNTAG),
    "layer-ref-missing": Kind("{name}: {digest}", remedy=_PULL),
    "layer-stream-missing": Kind("{name}: {digest}"),
    "layer-check-failed": Kind("{name}: {digest}: {detail}"),
    "layer-object-missing": Kind("{name}: {digest}: {detail}"),
    "seal-image-missing": Kind(
        "{name}: {digest}: {detail}", remedy="'composefs-async import-image' the image that the label names"
    ),
    "artifact-layer-ref-missing": Kind("{name}: {digest}", remedy=_PULL),
    "artifact-layer-object-missing": Kind("{name}: {digest}: {detail}"),
    "ref-resolve-failed": Kind("{name}: {detail}", remedy="'composefs-async oci images' lists the tags there are"),
    "invalid-ref-name": Kind(
        "{name}: leading '@' is reserved for digest references",
        remedy="'composefs-async refs rename' it, from streams/oci/@… to another name",
    ),
    # ours
    "layer-digest-mismatch": Kind("{name}: {digest}: {detail}"),
    "layer-tail-missing": Kind("{name}: {digest}: {detail}"),
    "image-missing": Kind("{name}: {detail}"),
}
"""By name, in the order of a check."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found wrong; which of the optional fields are set follows from *kind*."""

    kind: str
    """A name in `KINDS`."""
    path: str
    """Relative to the repository: ``objects/xx/rest``, ``streams/NAME``, ``images/refs/a/b``, ``meta.json``."""
    object_id: ObjectId | None = None
    """Id of the object that is missing, or that a name leads to."""
    name: str = ""
    """Name of a named reference of the stream at *path*, or an OCI tag."""
    digest: str = ""
    """The content digest of a config or layer: of a layer its diff_id."""
    expected: str = ""
    measured: str = ""
    detail: str = ""
    cause: str = ""
    """What is behind *detail*, where that is what composefs-rs says and tells less."""
    unread: bool = field(default=False, compare=False)
    """The thing could not be read, which does not mean that it is damaged: nothing is done because of it."""

    @property
    def is_notice(self) -> bool:
        """Whether nothing is damaged."""
        return KINDS[self.kind].notice

    @property
    def remedy(self) -> str:
        """What people can do."""
        return _READ if self.unread else KINDS[self.kind].remedy or _REPAIR

    @property
    def text(self) -> str:
        """One line for people, ``fsck: <kind>: …``; of the kinds that composefs-rs knows exactly its own."""
        return f"fsck: {self.kind}: {self._filled(KINDS[self.kind].text)}"

    @property
    def reason(self) -> str:
        """What is wrong with the thing at *path*, without its kind and path."""
        return self._filled(KINDS[self.kind].text.removeprefix("{path}: "))

    def _filled(self, text: str) -> str:
        return text.format_map({name: value or "" for name, value in self._values().items()})

    def _values(self) -> dict[str, Any]:
        """The fields, the id in hexadecimal."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | ({"object_id": self.object_id.hex()} if self.object_id is not None else {})

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``type``, ``path``, the optional fields that are set, ``unread`` and ``notice`` if so."""
        set_values = {name: value for name, value in self._values().items() if value and name != "kind"}
        return {"type": self.kind, **set_values, **({"notice": True} if self.is_notice else {})}
