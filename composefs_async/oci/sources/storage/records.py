"""What a containers-storage store says of its images and layers: ``images.json``, ``layers.json``, big data; blocks.

Owns the layout of a store and its locks, which exclude podman as podman excludes itself. A store is read, never
written to: lock files that are not there, or on a read-only file system, are done without.
"""

from __future__ import annotations

import base64
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...._sys.record_locks import lock_for_reading
from ....errors import OciError, TransportError
from ...jsondoc import JsonObject, parse_json_list
from .configuration import StorePlace

__all__ = ["LOCK_TIMEOUT", "ImageRecord", "LayerRecord", "Store", "layer_directory"]

LOCK_TIMEOUT = 120.0
"""Seconds to wait for podman, which may hold a lock for as long as it unpacks a layer."""

_JSON_LIMIT = 256 << 20
_ID = re.compile(r"[0-9a-f]{64}")
_PLAIN_KEY = re.compile(r"[0-9a-z.]+")
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of a store."""

    store: Store = field(repr=False)
    id: str
    names: tuple[str, ...]
    layer: str | None
    """The id of the top layer."""
    manifests: dict[str, str]
    """Keys of big data by the digests of the manifests that they are; the plain ``manifest`` first."""
    documents: dict[str, str] = field(default_factory=dict[str, str])
    """The digests that the store has noted of all big data, by key."""


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer of a store."""

    store: Store = field(repr=False)
    id: str
    parent: str | None
    diff_id: str | None
    """What the store says that it is."""
    size: int | None


class Store:
    """One store, which may not be there."""

    def __init__(self, place: StorePlace, timeout: float = LOCK_TIMEOUT) -> None:
        self.root: Path = place.root
        self.driver: str = place.driver
        self.additional: bool = place.additional
        self._timeout = timeout

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        return self._directory("images").is_dir()

    def _directory(self, kind: str) -> Path:
        return self.root / f"{self.driver}-{kind}"

    @contextmanager
    def locked(self, kind: str, check: Callable[[], object] | None = None) -> Iterator[None]:
        """Keep writers of ``images`` or ``layers`` away for the time of the block.

        Raises:
            TransportError: one had the lock for all of the time.
        """
        path = self._directory(kind) / f"{kind}.lock"
        try:
            fd = os.open(path, _FILE_FLAGS)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.ENOTDIR):
                raise
            fd = -1
        try:
            if fd >= 0 and not lock_for_reading(fd, self._timeout, check):
                raise TransportError(f"{path} has been locked by somebody else for {self._timeout:g} seconds")
            yield
        finally:
            if fd >= 0:
                os.close(fd)

    def images(self) -> list[ImageRecord]:
        """All images; call it with the lock.

        Raises:
            OciError: images.json is damaged.
        """
        return [
            self._image(document)
            for document in self._documents("images", "images.json")
            if _ID.fullmatch(document.get("id", str) or "")
        ]

    def _image(self, document: JsonObject) -> ImageRecord:
        digests = document.texts("big-data-digests")
        manifests: dict[str, str] = {}
        for key in sorted(digests, key=lambda key: (key != "manifest", key)):
            if key.startswith("manifest"):
                manifests.setdefault(digests[key], key)
        if digest := document.get("digest", str):
            manifests.setdefault(digest, "manifest")
        return ImageRecord(
            self,
            document.get("id", str) or "",
            tuple(document.list_of("names", str) or ()),
            document.get("layer", str) or None,
            manifests,
            digests,
        )

    def layers(self) -> dict[str, LayerRecord]:
        """All layers that are whole; call it with the lock.

        Raises:
            OciError: layers.json is damaged.
        """
        found: dict[str, LayerRecord] = {}
        for name in ("layers.json", "volatile-layers.json"):
            for document in self._documents("layers", name):
                layer_id, flags = document.get("id", str) or "", document.child("flags")
                if _ID.fullmatch(layer_id) and not (flags is not None and flags.members.get("incomplete") is True):
                    expected = None if flags is None else flags.get("expected-layer-diffid", str)
                    diff_id = document.get("diff-digest", str) or expected
                    parent, size = document.get("parent", str) or None, document.get("diff-size", int)
                    found.setdefault(layer_id, LayerRecord(self, layer_id, parent, diff_id, size))
        return found

    def _documents(self, kind: str, name: str) -> list[JsonObject]:
        path = self._directory(kind) / name
        raw = _read(path, _JSON_LIMIT)
        return parse_json_list(raw, str(path), limit=_JSON_LIMIT) if raw and raw.strip() not in (b"", b"null") else []

    def big_data(self, image: ImageRecord, key: str, limit: int) -> bytes:
        """A document of an image.

        Raises:
            TransportError: it is missing.
            OciError: it is larger than *limit* bytes.
        """
        name = key if _PLAIN_KEY.fullmatch(key) else "=" + base64.b64encode(key.encode()).decode()
        path = self._directory("images") / image.id / name
        raw = _read(path, limit) if "/" not in name else None
        if raw is None:
            raise TransportError(f"{path} is missing")
        return raw

    # -- layers --------------------------------------------------------------------------------

    def recipe(self, layer_id: str) -> Path:
        """The tar-split of a layer."""
        return self._directory("layers") / f"{layer_id}.tar-split.gz"

    def files(self, layer_id: str) -> Path:
        """The directory of a layer's files."""
        if self.driver == "vfs":
            return self.root / "vfs" / "dir" / layer_id
        return self.root / self.driver / layer_id / "diff"

    def has_files(self, layer_id: str) -> bool:
        """Whether a layer's files are in this store."""
        return self.files(layer_id).is_dir()


def layer_directory(layer: LayerRecord, stores: Iterable[Store]) -> Path:
    """The directory of a layer: with an image store apart, it may be in another one than the record."""
    places = [layer.store, *stores]
    return next((store for store in places if store.has_files(layer.id)), layer.store).files(layer.id)


def _read(path: Path, limit: int) -> bytes | None:
    """A regular file; None if it is not there."""
    try:
        fd = os.open(path, _FILE_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(fd, "rb") as file:
        raw: Any = file.read(limit + 1)
    if len(raw) > limit:
        raise OciError(str(path), f"it is larger than the limit of {limit} bytes")
    return bytes(raw)
