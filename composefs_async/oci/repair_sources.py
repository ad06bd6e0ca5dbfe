"""Where a repair gets images from, by name: any source of images, or another repository.

Owns finding an image by its manifest's digest, and bringing one layer at a time, complete and verified, into a form
that objects can be taken from.  Does not own what is done with them (`repair`).

Layers of a source are imported into a repository of their own, below ``.composefs-async/`` of the one that is
repaired, which vanishes afterwards; one that a crash left is removed by the next repair.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .._aio.hops import hop, opening_hop
from .._maintenance import state_dir
from .._maintenance.repair.sources import RepositorySource
from .._maintenance.repair.stream_names import content_is
from .._repo.state import DIRECTORY_MODE, RepoState
from .._sys import files, locks
from ..digest import ObjectId
from ..errors import ComposefsError, OciError, TransportError
from ..naming import layer_stream
from ..repository import Repository, state_of
from .catalogue import open_image
from .documents import ImageConfig, ImageLayer, Manifest
from .importing.layers import ImportRun, import_layer, store_blob
from .importing.one_pass import OnePassSource
from .importing.pull import pull
from .importing.unpack import Unpacker, byte_source
from .limits import Limits
from .sources.base import ImageSource, ResolvedImage
from .sources.layout import OciLayoutSource
from .sources.opening import open_source

__all__ = ["ImageDocuments", "ImagesOfRepository", "ImagesOfSource", "ImagesSource", "open_images"]

_SCRATCH = "scratch-"


@dataclass(frozen=True, slots=True)
class ImageDocuments:
    """Manifest and config of an image or artifact, verified."""

    manifest_digest: str
    manifest_raw: bytes = field(repr=False)
    config_digest: str
    config_raw: bytes = field(repr=False)
    is_container: bool
    """No artifact, so that it has EROFS images."""
    layers: tuple[str, ...]
    """By what they are known in the repository, in the order of the config."""


def _documents(
    manifest: Manifest, config: ImageConfig | None, config_raw: bytes, layers: Iterable[str]
) -> ImageDocuments:
    digest = manifest.config.digest
    return ImageDocuments(manifest.digest, manifest.raw, digest, config_raw, config is not None, tuple(layers))


Layer = tuple[ObjectId, RepositorySource]
"""The stream of a layer, and where it is with all its objects."""


class ImagesSource(Protocol):
    """Has images, or some of what they consist of."""

    @property
    def name(self) -> str:
        """Name of the source, for reports."""
        ...

    async def find(self, manifest_digest: str) -> ImageDocuments | None:
        """The image with that manifest; None if it is not there or damaged."""
        ...

    def layer(self, layer: str) -> AbstractAsyncContextManager[Layer | None]:
        """A layer whose content is what its digest says, for the time of the block; None if it is not there.

        Raises:
            ComposefsError: it is damaged.
        """
        ...


# -- another repository ------------------------------------------------------------------------


class ImagesOfRepository:
    """The images of a repository of the same algorithm."""

    def __init__(self, objects: RepositorySource) -> None:
        self.name: str = objects.name
        self._objects = objects
        self._repo = Repository(objects.state)

    async def find(self, manifest_digest: str) -> ImageDocuments | None:
        """Return the documents of the image with *manifest_digest*; None if it is missing or damaged."""
        try:
            image = await hop(open_image, self._repo, f"@{manifest_digest}")
        except (ComposefsError, OSError):
            return None
        return _documents(image.manifest, image.config, image.config_raw, image.layers)

    @asynccontextmanager
    async def layer(self, layer: str) -> AsyncIterator[Layer | None]:
        """Yield the layer, whose content has been checked; None if it is missing.  `OciError` if it is damaged."""
        name = layer_stream(layer)
        stream_id = await hop(self._objects.stream, name)
        if stream_id is None:
            yield None
            return
        if not await hop(content_is, self._objects.state, stream_id, name):
            raise OciError(f"layer {layer}", "its content there is not what its name says")
        yield stream_id, self._objects


# -- sources of images -------------------------------------------------------------------------


@asynccontextmanager
async def open_images(
    state: RepoState, reference: str, limits: Limits, *, outside: bool = False
) -> AsyncIterator[ImagesSource]:
    """The images that *reference*, of any transport, leads to.  What can be read but once is read here, as a whole.

    Args:
        outside: keep what is imported in the directory for temporary files, and not in the repository.

    Raises:
        InvalidNameError, OciError, ImageNotFoundError, TransportError: there is no such source, or no such image in it.
    """
    async with open_source(reference, limits) as source:
        if isinstance(source, OnePassSource):
            async with _scratch(state, outside) as scratch:
                await pull(scratch, source, tag="source", make_images=False, limits=limits)
                yield ImagesOfRepository(RepositorySource(state_of(scratch), reference, owned=False))
        else:
            images = ImagesOfSource(state, reference, source, limits, outside)
            await images.look()
            yield images


class ImagesOfSource:
    """The images of an `ImageSource`, such as an image directory."""

    def __init__(self, state: RepoState, name: str, source: ImageSource, limits: Limits, outside: bool) -> None:
        self.name: str = name
        self._state, self._source, self._limits, self._outside = state, source, limits, outside
        self._layers: dict[str, tuple[ImageLayer, bool]] = {}

    async def look(self) -> None:
        """Find the image that is meant; where several may be, only manifests can be asked for.

        Raises:
            As `open_images`.
        """
        source = self._source
        if isinstance(source, OciLayoutSource) and not source.is_bound:
            await hop(_check, source.directory)
            return
        try:
            self._take_layers(await source.resolve())
        except OciError:
            if isinstance(source, OciLayoutSource):
                raise

    def _take_layers(self, image: ResolvedImage) -> None:
        for layer in image.layers:
            self._layers.setdefault(layer.name, (layer, image.config is not None))

    async def find(self, manifest_digest: str) -> ImageDocuments | None:
        """Return the documents of the image with *manifest_digest*; None if the source does not have it."""
        try:
            image = await self._source.resolve(digest=manifest_digest)
        except ComposefsError:
            return None
        self._take_layers(image)
        return _documents(image.manifest, image.config, image.config_raw, [layer.name for layer in image.layers])

    @asynccontextmanager
    async def layer(self, layer: str) -> AsyncIterator[Layer | None]:
        """Import the layer into a scratch repository for the block; None if no image that was found has it."""
        if layer not in self._layers:
            yield None
            return
        found, is_tar = self._layers[layer]
        async with _scratch(self._state, self._outside) as scratch:
            try:
                stream_id = await self._import(scratch, found, is_tar)
            except OSError as error:
                raise TransportError(str(error)) from error
            yield stream_id, RepositorySource(state_of(scratch), self.name, owned=False)

    async def _import(self, scratch: Repository, layer: ImageLayer, is_tar: bool) -> ObjectId:
        descriptor = layer.descriptor
        async with self._source.open_blob(descriptor) as blob:
            if is_tar:
                media_type = descriptor.media_type
                result = await import_layer(scratch, layer.name, blob, media_type=media_type, limits=self._limits)
                return result.stream_id
            async with ImportRun.begin(scratch, None, self._limits) as run:
                raw = Unpacker(run.state, byte_source(blob), descriptor.digest, raw=True, limits=self._limits)
                return (await store_blob(run, descriptor, raw)).stream_id


def _check(directory: Path) -> None:
    if not (directory / "oci-layout").is_file():
        raise OciError(str(directory), "not an OCI image directory: it has no file oci-layout")


@asynccontextmanager
async def _scratch(state: RepoState, outside: bool) -> AsyncIterator[Repository]:
    """A repository like that of *state* for the time of the block, on the same file system unless it is *outside*."""
    repo = await opening_hop(_remove_scratch, _make_outside if outside else _make_scratch, state)
    try:
        yield repo
    finally:
        await hop(_remove_scratch, repo)


def _make_scratch(state: RepoState) -> Repository:
    with files.naming(state.path):
        files.make_directory(state_dir.DIRECTORY, DIRECTORY_MODE, dir_fd=state.fd)
    top = Path(state.path, state_dir.DIRECTORY)
    for old in top.glob(f"{_SCRATCH}*"):
        _remove_stale(old)
    path = top / f"{_SCRATCH}{secrets.token_hex(6)}"
    return Repository.init(path, algorithm=state.algorithm, erofs_version=None, insecure=not state.secure)


def _make_outside(state: RepoState) -> Repository:
    path = tempfile.mkdtemp(prefix="composefs-async-repair-")
    return Repository.init(path, algorithm=state.algorithm, erofs_version=None, insecure=True)


def _remove_scratch(repo: Repository) -> None:
    try:
        _remove_tree(repo.path)
    finally:
        repo.close()


def _remove_tree(path: str | Path) -> None:
    """Remove what can be removed: a later repair comes back to the rest."""
    with suppress(OSError):  # which does not ignore all of them
        shutil.rmtree(path, ignore_errors=True)


def _remove_stale(path: Path) -> None:
    """Remove what a repair left that did not end; one that runs holds its lock."""
    with suppress(OSError), files.opened(os.fspath(path), os.O_RDONLY | os.O_DIRECTORY) as fd:
        if locks.lock(fd, exclusive=True, timeout=0):
            _remove_tree(path)
