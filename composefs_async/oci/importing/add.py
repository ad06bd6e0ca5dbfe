"""An image of layers that are in the repository already: what ends an import that somebody else has led.

Owns the checks of manifest and config against the layers that are there.  Does not own publishing (`image_pull`).
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from ..._aio.hops import hop
from ..._aio.operations import async_operation
from ...digest import sha256_content_digest
from ...errors import ImageNotFoundError, OciError, StreamNotFoundError
from ...progress import ProgressCallback
from ...repository import Repository, state_of
from ..documents import Descriptor, image_layers, parse_config, parse_manifest, verify_content
from ..limits import Limits
from ..platforms import Platform
from ..sources.base import Blob, ResolvedImage
from .layers import find_layer
from .pull import pull
from .pull_result import PullResult

__all__ = ["add_image"]

_LISTED = 4  # as many layers as an error message lists


@async_operation
async def add_image(
    repo: Repository,
    manifest: bytes,
    config: bytes,
    *,
    tag: str,
    make_images: bool = True,
    progress: ProgressCallback | None = None,
    limits: Limits | None = None,
) -> PullResult:
    """Make an image of layers that `import_layer` has stored, and tag it.  Durable on return.

    What is checked: the config has the digest and the size that the manifest says; manifest and config have as many
    layers; a layer of each diff_id that the config lists is in the repository, where it came only with that digest.
    When this raises or is cancelled, nothing has been published.

    Args:
        manifest: its bytes as they are; their sha256 digest names the image.
        config: its bytes as they are.
        tag: the image's name in the repository.
        make_images, progress, limits: as for `pull`.

    Raises:
        StreamNotFoundError: a layer is not in the repository; the message lists which.
        OciError: a document is not valid, or they do not fit together.
        DigestMismatchError: *config* is not the manifest's.
        InvalidNameError, ErofsError, ReadOnlyRepositoryError
    """
    limits = limits or Limits()
    image = _image(manifest, config, limits.document_size)
    state = state_of(repo)
    missing = [
        layer.name
        for layer in {layer.name: layer for layer in image.layers}.values()
        if await find_layer(state, layer.name, tar=image.config is not None) is None
    ]
    if missing:
        await hop(state.require_writable)
        raise _missing(missing)
    source = _StoredLayers(image)
    return await pull(repo, source, tag=tag, make_images=make_images, progress=progress, limits=limits)


def _image(manifest_raw: bytes, config_raw: bytes, limit: int) -> ResolvedImage:
    digest = sha256_content_digest(manifest_raw)
    manifest = parse_manifest(manifest_raw, digest, limit=limit)
    described = manifest.config
    verify_content(f"config {described.digest}", config_raw, described.digest)
    if described.size != len(config_raw):
        raise OciError(f"config {described.digest}", f"it has {len(config_raw)} bytes, not the {described.size} said")
    config = parse_config(config_raw, described.digest, limit=limit) if manifest.is_container else None
    return ResolvedImage(f"@{digest}", manifest, config, config_raw, image_layers(manifest, config))


def _missing(names: list[str]) -> StreamNotFoundError:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return StreamNotFoundError(f"{', '.join(names[:_LISTED])}{more}", "layer", "import it first")


@dataclass(frozen=True, slots=True)
class _StoredLayers:
    """An `ImageSource` of one image whose layers are in the repository."""

    image: ResolvedImage

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        if tag is not None or digest not in (None, self.image.manifest.digest):
            raise ImageNotFoundError(tag or digest or "")
        return self.image

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[Blob]:
        """Only asked for if a layer has gone, or cannot be read, since it was looked for."""
        names = [layer.name for layer in self.image.layers if layer.descriptor.digest == descriptor.digest]
        raise _missing(names or [descriptor.digest])
