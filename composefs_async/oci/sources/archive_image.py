"""One image in an archive, of whichever shape: an OCI layout in a tar, what ``docker save`` writes, or both in one.

Owns which of the two descriptions counts, and which member is which layer.  Where an archive has an OCI manifest with
the config and all the layers that ``manifest.json`` names, that is the image, so that its digest stays what it was;
what is only in ``manifest.json`` gets a manifest made of it (`docker_manifest`).  Does not own reading members
(`members`, and `composefs_async.oci.one_pass` for what comes but once).  Blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from ...digest import sha256_content_digest
from ...errors import ComposefsError, DigestMismatchError, ImageNotFoundError, OciError
from ..documents import ImageConfig, parse_config
from ..platforms import Candidate, Platform, choose
from .base import ResolvedImage
from .docker_manifest import DockerImage, choose_image, made_image, parse_docker_manifest
from .members import clean_name
from .resolving import Resolving, Wanted
from .store import BlobStore, MissingError, blob_name

__all__ = ["ArchiveWanted", "FoundImage", "find_image"]

_INDEX, _MANIFEST = "index.json", "manifest.json"
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ArchiveWanted:
    """Which image of an archive."""

    transport: str
    """``oci-archive``, ``docker-archive``, or ``archive`` for either."""
    reference: str
    """As a user spells it, for messages."""
    name: str | None = None
    position: int | None = None
    digest: str | None = None
    """Digest of the manifest."""
    config_digest: str | None = None
    """Must be the image's, if it is given."""


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image, and where its layers are."""

    image: ResolvedImage
    members: dict[str, str]
    """Names of members, by the digests of descriptors."""


def find_image(
    store: BlobStore,
    wanted: ArchiveWanted,
    platform: Platform | None,
    limit: int,
    unpacked_size: Callable[[str], int],
) -> FoundImage:
    """Find an image in an archive and verify its documents.

    Args:
        limit: on the size of each document, in bytes.
        unpacked_size: of the member of that name, which is a layer; in bytes.

    Raises:
        As `ImageSource.resolve`.
    """
    return _Finder(store, wanted, platform, limit, unpacked_size).find()


@dataclass(slots=True)
class _Finder:
    store: BlobStore
    wanted: ArchiveWanted
    platform: Platform | None
    limit: int
    unpacked_size: Callable[[str], int]

    def find(self) -> FoundImage:
        transport, reference = self.wanted.transport, self.wanted.reference
        is_oci, is_docker = self.store.has(_INDEX), self.store.has(_MANIFEST)
        if transport == "oci-archive" and not is_oci:
            hint = ", but a manifest.json: use docker-archive:" if is_docker else ""
            raise OciError(reference, f"it has no index.json{hint}")
        if not is_docker and self.store.has("repositories"):
            raise OciError(reference, "it is in the format of Docker before 1.10, which has no manifest.json")
        if transport == "docker-archive" and not is_docker:
            raise OciError(
                reference, f"it has no manifest.json{', but an index.json: use oci-archive:' if is_oci else ''}"
            )
        if not is_oci and not is_docker:
            raise OciError(
                reference,
                "it is no archive of images: it has neither index.json nor manifest.json; tarball: takes plain tars",
            )
        if self.wanted.digest is not None:
            return self._by_digest(is_oci, is_docker)
        if transport == "oci-archive" or not is_docker:
            return self._in_layout()
        try:
            return self._in_docker_manifest(is_oci)
        except ImageNotFoundError:
            if transport == "docker-archive" or not is_oci or self.wanted.position is not None:
                raise
            return self._in_layout()

    def _resolving(self) -> Resolving:
        return Resolving(self.store, self.wanted.reference, self.limit)

    def _in_layout(self) -> FoundImage:
        wanted = Wanted(self.wanted.name, self.wanted.digest, self.wanted.position)
        return _of_layout(self._resolving().resolve(wanted, self.platform))

    def _by_digest(self, is_oci: bool, is_docker: bool) -> FoundImage:
        """Of a layout, or a manifest that would be made."""
        try:
            if is_oci:
                return self._in_layout()
        except ImageNotFoundError:
            if not is_docker:
                raise
        if is_docker:
            for item in self._items():
                with suppress(ComposefsError):
                    found = self._made(item, self._config(item))
                    if found.image.manifest.digest == self.wanted.digest:
                        return found
        raise ImageNotFoundError(self.wanted.reference)

    # -- manifest.json -------------------------------------------------------------------------

    def _items(self) -> list[DockerImage]:
        return parse_docker_manifest(self.store.read(_MANIFEST, self.limit), self.store.path(_MANIFEST), self.limit)

    def _in_docker_manifest(self, is_oci: bool) -> FoundImage:
        item = choose_image(self._items(), self.wanted.reference, self.wanted.name, self.wanted.position)
        config = self._config(item)
        if self.wanted.config_digest not in (None, config.digest):
            raise DigestMismatchError(
                f"config of {self.wanted.reference}", str(self.wanted.config_digest), config.digest
            )
        if self.platform is not None:
            if is_oci and config.platform != self.platform:
                return self._in_layout()
            choose([Candidate(config.digest, config.platform)], self.platform, what=self.wanted.reference, tagged=True)
        if is_oci:
            for image in self._of_config(config):
                return _of_layout(image)
        return self._made(item, config)

    def _config(self, item: DockerImage) -> ImageConfig:
        raw = self.store.read(item.config, self.limit)
        digest = sha256_content_digest(raw)
        config = parse_config(raw, digest, limit=self.limit)
        name = item.config.rpartition("/")[2].removesuffix(".json")
        if len(name) == 64 and _HEX.issuperset(name) and digest != f"sha256:{name}":
            raise DigestMismatchError(f"config {self.store.path(item.config)}", f"sha256:{name}", digest)
        if len(config.diff_ids) != len(item.layers):
            raise OciError(
                self.store.path(_MANIFEST),
                f"it has {len(item.layers)} layers, but its config {digest} has {len(config.diff_ids)}",
            )
        return config

    def _of_config(self, config: ImageConfig) -> Iterator[ResolvedImage]:
        """Images of the layout with that config, all of whose layers are in the archive."""
        resolving = self._resolving()
        try:
            for entry in resolving.manifests():
                with suppress(ComposefsError):  # what is not usable there is made of manifest.json
                    image = resolving.image(entry)
                    if image.manifest.config.digest == config.digest and all(
                        self.store.has(blob_name(layer.descriptor.digest)) for layer in image.layers
                    ):
                        yield image
        except ComposefsError:
            return

    def _made(self, item: DockerImage, config: ImageConfig) -> FoundImage:
        names = [clean_name(layer) or layer for layer in item.layers]
        for name in names:
            if not self.store.has(name):
                raise MissingError(f"{self.store.path(name)} is missing")
        sizes = {name: self.unpacked_size(name) for name in dict.fromkeys(names)}
        image = made_image(self.wanted.reference, config, [sizes[name] for name in names])
        return FoundImage(image, dict(zip(config.diff_ids, names, strict=True)))


def _of_layout(image: ResolvedImage) -> FoundImage:
    return FoundImage(image, {layer.descriptor.digest: blob_name(layer.descriptor.digest) for layer in image.layers})
