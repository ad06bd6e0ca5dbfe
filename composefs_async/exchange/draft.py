"""An artifact that is being published: its parts in the store, and the documents that describe them.

Owns the table, config and manifest of what is uploaded, and what is uploaded again when garbage collection has put a
part on its list.  Does not own the commit (`commit`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..digest import Algorithm, ObjectId
from .closure import Closure
from .documents import TABLE_TYPE, Config, Descriptor, Manifest, build_manifest, digest_of, verify
from .packing import new_salt
from .plan import Place
from .table import KEY_SIZE, Entry, encode_table

__all__ = ["Documents", "ImageDraft", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """A blob of the store, and the members of it that the artifact needs, by key."""

    blob: Descriptor
    members: Mapping[bytes, Place]


@dataclass(frozen=True, slots=True)
class Documents:
    """Table, config and manifest as bytes, by digest; the manifest stands last."""

    manifest: Manifest
    documents: dict[str, bytes]


@dataclass(slots=True)
class ImageDraft:
    """The artifact of one closure.

    Args:
        upload: puts objects into new, salted packs and returns them; blocks.
    """

    closure: Closure
    algorithm: Algorithm
    parts: list[Part]
    upload: Callable[[list[ObjectId]], list[Part]]
    subject: Mapping[str, Any] | None = None
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    salts: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """Of ``table``, ``config`` and ``manifest``, where they have one."""
    _last: Documents | None = None

    def assemble(self) -> Documents:
        """The documents of the parts as they are now.

        Parts stand in the order of the closure, so that the same parts always make the same documents.
        """
        order = {found[:KEY_SIZE]: at for at, found in enumerate(self.closure.ids)}
        self.parts.sort(key=lambda part: min((order[key] for key in part.members), default=0))
        table = encode_table(self.algorithm, len(self.parts), list(self._entries()), self.salts.get("table", b""))
        descriptor = Descriptor(TABLE_TYPE, digest_of(table), len(table))
        annotations = dict(self.annotations)
        if "manifest" in self.salts:
            annotations["io.composefs-async.salt"] = self.salts["manifest"].hex()
        config = self._config()
        blobs = [part.blob for part in self.parts]
        manifest = build_manifest(config, descriptor, blobs, subject=self.subject, annotations=annotations)
        encoded = config.encode()
        verify("config", encoded, manifest.config.digest)
        documents = {descriptor.digest: table, manifest.config.digest: encoded, manifest.digest: manifest.raw}
        self._last = Documents(manifest, documents)
        return self._last

    def _config(self) -> Config:
        closure = self.closure
        config = Config(
            closure.kind,
            self.algorithm,
            len(closure.ids),
            closure.size,
            closure.root,
            closure.streams,
            closure.images,
        )
        return replace(config, salt=self.salts["config"].hex()) if "config" in self.salts else config

    def _entries(self) -> Iterable[Entry]:
        kinds = {found[:KEY_SIZE]: kind for found, kind in zip(self.closure.ids, self.closure.kinds, strict=True)}
        for number, part in enumerate(self.parts):
            for key, place in part.members.items():
                yield Entry(key, number, place.offset, place.stored, place.size, kinds[key], place.coding)

    def renew(self, digests: Collection[str]) -> None:
        """Upload the members of the parts *digests* again, and give documents among them other digests.  Blocks."""
        assert self._last is not None
        manifest = self._last.manifest
        documents = (
            ("table", manifest.table.digest),
            ("config", manifest.config.digest),
            ("manifest", manifest.digest),
        )
        for kind, digest in documents:
            if digest in digests:
                self.salts[kind] = new_salt()
        ids = {found[:KEY_SIZE]: found for found in self.closure.ids}
        lost = [part for part in self.parts if part.blob.digest in digests]
        wanted = {key for part in lost for key in part.members}
        if wanted:
            kept = [part for part in self.parts if part.blob.digest not in digests]
            # In the order of the closure, as all packs are.
            self.parts = [*kept, *self.upload([found for key, found in ids.items() if key in wanted])]
