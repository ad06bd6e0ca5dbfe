"""`ImageBuilder`: an image out of trees, tars and settings, the same to the byte wherever it is built.

Layers are stored as they are added, under a lease, and the tar of a tree never exists on disk: what is stored are its
files. The image appears by `ImageBuilder.commit`.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ..._aio.hops import hop
from ...errors import OciError
from ...progress import ProgressCallback
from ...repository import Repository
from ..catalogue import open_image
from ..importing.add import add_image
from ..importing.layers import LayerResult, import_layer
from ..importing.pull_result import PullResult
from ..importing.unpack import ByteSource
from ..platforms import Platform, host_platform
from ..sources.base import BlockingBlob, LocalBlob
from ..sources.environment import variable
from ..stored_layers import layer_info
from .config import ConfigSettings, changed_config, documents, plain_descriptor, timestamp
from .layer_tar import LayerTar, TreeOptions, Xattrs, file_tar, tree_tar

__all__ = ["ImageBuilder", "build_image", "edit_config"]

_CREATED_BY = "composefs-async oci build"


class ImageBuilder:
    """Gathers layers and settings in a repository; `build_image` makes one.

    Calls that add layers may be awaited one after the other only, since their order is that of the layers.
    """

    def __init__(
        self,
        repo: Repository,
        platform: Platform,
        created: int,
        base: Mapping[str, Any],
        progress: ProgressCallback | None,
    ) -> None:
        self._repo, self._platform, self._seconds, self._progress = repo, platform, created, progress
        self._base = dict(base)
        self._layers: list[tuple[Mapping[str, Any], str, str | None]] = []
        self._annotations: dict[str, str] = {}

    def _take_base(self, layers: Sequence[tuple[Mapping[str, Any], str]], annotations: Mapping[str, str]) -> None:
        self._layers += [(descriptor, diff_id, None) for descriptor, diff_id in layers]
        self._annotations |= annotations

    # -- layers --------------------------------------------------------------------------------

    async def add_directory(
        self,
        path: str | os.PathLike[str],
        *,
        at: str = "/",
        owner: tuple[int, int] | None = None,
        exclude: Sequence[str] = (),
        xattrs: Xattrs = "keep",
        mtime_max: int | None = None,
    ) -> LayerResult:
        """Add a layer of a directory's content.

        Args:
            at: where it goes in the image.
            owner: user and group id of everything; the real ones if not given.
            exclude: patterns of paths below *path*, as in shells.
            xattrs: ``keep`` all but labels of SELinux and overlayfs's own, or ``none``.
            mtime_max: times after this one, in seconds, are set to it; the image's if not given.

        Raises:
            OciError: something changed while it was read.
            OSError: something cannot be read.
        """
        latest = self._seconds if mtime_max is None else mtime_max
        return await self._add(tree_tar(path, TreeOptions(at, owner, exclude, xattrs, latest)))

    async def add_tar(self, source: ByteSource | str | os.PathLike[str]) -> LayerResult:
        """Add a tar, packed or not, as a layer: its bytes unpacked are kept exactly.

        Args:
            source: as for `import_layer`, or the path of a file.
        """
        if not isinstance(source, str | os.PathLike):
            return await self._take(await import_layer(self._repo, None, source, progress=self._progress))
        fd = await hop(os.open, source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = (await hop(os.fstat, fd)).st_size
            blob = LocalBlob(fd, size, os.fspath(source))
            return await self._take(await import_layer(self._repo, None, blob, progress=self._progress))
        finally:
            os.close(fd)

    async def add_files(self, files: Mapping[str, bytes], *, mode: int = 0o644) -> LayerResult:
        """Add a layer of a few files, given by path with their content; directories above them are made."""
        return await self._add(file_tar(files, mode=mode, mtime=self._seconds))

    async def remove(self, *paths: str) -> LayerResult:
        """Add a layer that removes what is at *paths* in the layers below.

        Raises:
            OciError: there are none.
        """
        if not self._layers:
            raise OciError("layer", "there is nothing to remove: no layer is below")
        return await self._add(file_tar({}, mode=0, mtime=self._seconds, whiteouts=paths))

    async def _add(self, pieces: Any) -> LayerResult:
        blob = BlockingBlob(LayerTar(pieces).readinto, 0)
        return await self._take(await import_layer(self._repo, None, blob, progress=self._progress))

    async def _take(self, layer: LayerResult) -> LayerResult:
        info = await hop(layer_info, self._repo, layer.diff_id)
        self._layers.append((plain_descriptor(layer.diff_id, info.size), layer.diff_id, _CREATED_BY))
        return layer

    # -- documents -----------------------------------------------------------------------------

    def config(self, settings: ConfigSettings) -> None:
        """Apply settings to the config."""
        self._base = changed_config(self._base, settings)

    def annotations(self, values: Mapping[str, str]) -> None:
        """Add annotations of the manifest."""
        self._annotations |= values

    async def commit(self, tag: str, *, make_images: bool = True) -> PullResult:
        """Make the image and tag it.  Durable on return.

        Raises:
            OciError: it has no layer.
            As `add_image`.
        """
        if not self._layers:
            raise OciError(tag, "an image needs a layer")
        manifest, config = documents(
            self._base, self._platform, timestamp(self._seconds), self._layers, self._annotations
        )
        return await add_image(self._repo, manifest, config, tag=tag, make_images=make_images, progress=self._progress)


@asynccontextmanager
async def build_image(
    repo: Repository,
    *,
    platform: Platform | None = None,
    created: int | None = None,
    base: str | None = None,
    progress: ProgressCallback | None = None,
) -> AsyncGenerator[ImageBuilder]:
    """A builder for the time of the block, which keeps its layers from garbage collection.

    Args:
        platform: this machine's if not given, or that of the base.
        created: seconds since 1970; SOURCE_DATE_EPOCH if not given, else 1970, and never the time of day.
        base: a tag of the repository, or ``@DIGEST``.

    Raises:
        StreamNotFoundError: there is no such base.
        OciError: it is an artifact, or SOURCE_DATE_EPOCH is no number.
    """
    document: dict[str, Any] = {}
    layers: list[tuple[Mapping[str, Any], str]] = []
    annotations: dict[str, str] = {}
    if base is not None:
        document, layers, annotations, found = await hop(_read_base, repo, base)
        platform = platform or found
    seconds = _epoch() if created is None else created
    builder = ImageBuilder(repo, platform or host_platform(), seconds, document, progress)
    builder._take_base(layers, annotations)
    name = f"build {os.getpid()} {id(builder)}"
    async with repo.lease(name):
        yield builder


def _epoch() -> int:
    text = variable("SOURCE_DATE_EPOCH")
    if text is not None and not text.isdecimal():
        raise OciError("SOURCE_DATE_EPOCH", f"{text!r} is no number of seconds")
    return int(text or 0)


def _read_base(
    repo: Repository, base: str
) -> tuple[dict[str, Any], list[tuple[Mapping[str, Any], str]], dict[str, str], Platform | None]:
    image = open_image(repo, base)
    if image.config is None:
        raise OciError(base, "it is an artifact, and no base for an image")
    entries = json.loads(image.manifest.raw)["layers"]
    document = json.loads(image.config_raw)
    return (
        document,
        list(zip(entries, image.config.diff_ids, strict=True)),
        dict(image.manifest.annotations),
        image.config.platform,
    )


async def edit_config(
    repo: Repository,
    name: str,
    settings: ConfigSettings,
    *,
    tag: str,
    annotations: Mapping[str, str] | None = None,
    created: int | None = None,
    progress: ProgressCallback | None = None,
) -> PullResult:
    """Make an image of the layers of another one, with settings of its own.  Durable on return.

    Args:
        name: a tag of the repository, or ``@DIGEST``.
        tag: of the new image.

    Raises:
        As `build_image` and `ImageBuilder.commit`.
    """
    work = partial(build_image, repo, base=name, created=created, progress=progress)
    async with work() as builder:
        builder.config(settings)
        builder.annotations(annotations or {})
        return await builder.commit(tag)
