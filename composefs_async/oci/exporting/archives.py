"""Archives of images, made piece by piece: the same image makes the same bytes, whenever and wherever; blocks.

Members are sorted by name, owned by nobody, and dated 0 or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import OciError
from ..documents import REF_NAME, Descriptor
from ..sources.familiar import normalized_name
from .images import OutImage

__all__ = ["docker_archive", "index_entry", "oci_archive"]

_BLOCK = 512
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


def oci_archive(images: Sequence[tuple[OutImage, str | None]], mtime: int) -> Iterator[bytes]:
    """An OCI layout in a tar.

    Args:
        images: each with its tag in index.json.
        mtime: of the members, in seconds.
    """
    entries = [index_entry(image.manifest, tag) for image, tag in images]
    yield from _member("oci-layout", _LAYOUT, mtime)
    yield from _member("index.json", compact({"schemaVersion": 2, "manifests": entries}), mtime)
    blobs: dict[str, tuple[int, Any]] = {}
    for image, _ in images:
        for descriptor, content in ((image.manifest, image.manifest_raw), (image.config, image.config_raw)):
            blobs[descriptor.digest] = (descriptor.size, content)
        for layer in image.layers:
            blobs[layer.descriptor.digest] = (layer.descriptor.size, layer.pieces)
    for digest, (size, content) in sorted(blobs.items()):
        pieces = iter([content]) if isinstance(content, bytes) else content()
        yield from _streamed(f"blobs/{digest.replace(':', '/')}", size, pieces, mtime)
    yield bytes(2 * _BLOCK)


def docker_archive(images: Sequence[tuple[OutImage, Sequence[str]]], mtime: int) -> Iterator[bytes]:
    """What ``docker load`` reads; the layers must leave unpacked.

    Args:
        images: each with its names.
        mtime: of the members, in seconds.

    Raises:
        OciError: a name is none that an image can have.
    """
    items: list[dict[str, Any]] = []
    repositories: dict[str, dict[str, str]] = {}
    written: set[str] = set()
    for image, names in images:
        layers = [f"{diff_id.partition(':')[2]}.tar" for diff_id in image.diff_ids]
        config = f"{image.config.digest.partition(':')[2]}.json"
        tags = [_short(name) for name in names]
        items.append({"Config": config, "RepoTags": tags or None, "Layers": layers})
        for tag in tags:
            repository, _, version = tag.rpartition(":")
            if layers:
                repositories.setdefault(repository, {})[version] = layers[-1].removesuffix(".tar")
        for name, layer in zip(layers, image.layers, strict=True):
            if name not in written:
                written.add(name)
                yield from _streamed(name, layer.descriptor.size, layer.pieces(), mtime)
        if config not in written:
            written.add(config)
            yield from _member(config, image.config_raw, mtime)
    yield from _member("manifest.json", compact(items), mtime)
    yield from _member("repositories", compact(repositories), mtime)
    yield bytes(2 * _BLOCK)


def _short(name: str) -> str:
    """As Docker writes names: whole, but without its own registry."""
    whole = normalized_name(name)
    if whole is None:
        raise OciError(name, "not a name that an image in a docker-archive can have")
    return whole.removeprefix("docker.io/library/").removeprefix("docker.io/")


def index_entry(manifest: Descriptor, tag: str | None) -> dict[str, Any]:
    """An entry of index.json."""
    entry: dict[str, Any] = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
    return entry if tag is None else {**entry, "annotations": {REF_NAME: tag}}


def compact(document: object) -> bytes:
    """JSON without needless spaces."""
    return json.dumps(document, separators=(",", ":")).encode()


def _member(name: str, content: bytes, mtime: int) -> Iterator[bytes]:
    yield from _streamed(name, len(content), iter([content]), mtime)


def _streamed(name: str, size: int, pieces: Iterator[bytes], mtime: int) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, mtime, 0o644
    yield info.tobuf(tarfile.PAX_FORMAT)
    written = 0
    for piece in pieces:
        written += len(piece)
        yield piece
    if written != size:
        raise OciError(name, f"it has {written} bytes, not the {size} that were said")
    if size % _BLOCK:
        yield bytes(-size % _BLOCK)
