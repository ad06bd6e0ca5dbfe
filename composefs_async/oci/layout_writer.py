"""Writes OCI image directories: for demonstrations, tests and benchmarks, or to hand a tree to other tools.

Owns the blobs and documents of layers, images, artifacts and indexes.  Does not own packing and making tar
archives (`layer_archive`), nor reading what it wrote (`sources.layout`).  Everything here blocks, and nothing
is made durable.  The same calls give the same bytes, within the limit that `layer_archive` names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..digest import sha256_content_digest
from ..errors import OciError
from .documents import OCI_INDEX_TYPE, OCI_MANIFEST_TYPE, REF_NAME, Descriptor, LayerCompression
from .platforms import Platform, host_platform
from .tar.writer import LayerSink, WrittenLayer

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["OciLayoutWriter"]

_CHUNK = 1 << 20
_CREATED = "1970-01-01T00:00:00Z"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OCI_EMPTY = "application/vnd.oci.empty.v1+json"
_OCI_LAYERS: dict[LayerCompression, str] = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_DOCKER_LAYERS: dict[LayerCompression, str] = {
    "none": "application/vnd.docker.image.rootfs.diff.tar",
    "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
_LEVELS: dict[LayerCompression, int] = {"none": 0, "gzip": 6, "zstd": 3}


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class OciLayoutWriter:
    """Fills a new OCI image directory, which is valid after each call.

    Args:
        directory: is created if needed; must not have an ``index.json``.
        docker: use the media types of Docker's schema 2 instead of OCI's.
    """

    def __init__(self, directory: str | PathLike[str], *, docker: bool = False) -> None:
        self.directory: Path = Path(directory)
        self._docker = docker
        self._entries: list[dict[str, Any]] = []
        self._partial = 0
        if (self.directory / "index.json").exists():
            raise OciError(str(self.directory), "it is an image directory already")
        self._blobs.mkdir(parents=True, exist_ok=True)
        (self.directory / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
        self._write_index()

    @property
    def _blobs(self) -> Path:
        return self.directory / "blobs" / "sha256"

    # -- layers --------------------------------------------------------------------------------

    @contextmanager
    def layer(
        self, compression: LayerCompression = "gzip", *, level: int | None = None, member_size: int | None = None
    ) -> Iterator[LayerSink]:
        """A sink for the bytes of one tar archive; `LayerSink.layer` is there after the block.

        Args:
            level: of the compression; 6 for gzip and 3 for zstd unless given.
            member_size: start another gzip member or zstd frame after so many bytes of the archive.  Both formats
                allow it, but cfsctl 0.9.0 reads the first only.
        """
        self._partial += 1
        path = self._blobs / f".partial-{self._partial}"
        try:
            with path.open("xb") as file:
                sink = LayerSink(file, compression, _LEVELS[compression] if level is None else level, member_size)
                yield sink
                digest = sink.finish((_DOCKER_LAYERS if self._docker else _OCI_LAYERS)[compression])
            path.replace(self._blobs / digest.partition(":")[2])
        finally:
            path.unlink(missing_ok=True)

    def add_layer(
        self,
        tar: bytes | str | Path | _Readable,
        compression: LayerCompression = "gzip",
        *,
        level: int | None = None,
        member_size: int | None = None,
    ) -> WrittenLayer:
        """Add a tar archive, given as its content, its path or an open file; for the others see `layer`."""
        with self.layer(compression, level=level, member_size=member_size) as sink:
            if isinstance(tar, bytes):
                sink.write(tar)
            elif isinstance(tar, str | Path):
                with open(tar, "rb") as file:
                    _copy(file, sink)
            else:
                _copy(tar, sink)
        return sink.layer

    # -- images --------------------------------------------------------------------------------

    def add_image(
        self,
        layers: Sequence[WrittenLayer],
        *,
        tag: str | None = "latest",
        platform: Platform | None = None,
        config: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Add a container image.

        Args:
            tag: in ``index.json``; with None the image is not listed there, see `add_index`.
            platform: this machine's unless given.
            config: further members of the config, or others in place of those made here.
            annotations: of the manifest.
        """
        platform = platform or host_platform()
        variant = {"variant": platform.variant} if platform.variant else {}
        document = {
            "created": _CREATED,
            "architecture": platform.architecture,
            **variant,
            "os": platform.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": _CREATED, "created_by": f"layer {number}"} for number in range(len(layers))],
        } | dict(config or {})
        written = self.add_json(
            document, "application/vnd.docker.container.image.v1+json" if self._docker else _OCI_CONFIG
        )
        manifest = self._add_manifest(written, [layer.descriptor for layer in layers], annotations)
        return self._listed(replace(manifest, platform=platform), tag)

    def add_artifact(
        self, blobs: Iterable[tuple[str, bytes]], artifact_type: str, *, tag: str | None = "latest"
    ) -> Descriptor:
        """Add an artifact of blobs, each with its media type.  It has no platform and an empty config."""
        layers = [self.add_blob(content, media_type) for media_type, content in blobs]
        empty = self.add_blob(b"{}", _OCI_EMPTY)
        return self._listed(self._add_manifest(empty, layers, None, artifactType=artifact_type), tag)

    def add_index(self, manifests: Iterable[Descriptor], *, tag: str | None = "latest") -> Descriptor:
        """Add an index of what `add_image`, `add_artifact` and `add_index` returned."""
        media_type = "application/vnd.docker.distribution.manifest.list.v2+json" if self._docker else OCI_INDEX_TYPE
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": [_members(entry) for entry in manifests]}
        return self._listed(self.add_json(document, media_type), tag)

    def add_json(self, document: Mapping[str, Any], media_type: str) -> Descriptor:
        """Add any document as a blob."""
        return self.add_blob(json.dumps(document, separators=(",", ":")).encode(), media_type)

    def add_blob(self, content: bytes, media_type: str) -> Descriptor:
        """Write a blob into the layout and return its descriptor."""
        digest = sha256_content_digest(content)
        (self._blobs / digest.partition(":")[2]).write_bytes(content)
        return Descriptor(media_type, digest, len(content))

    def list_entry(self, descriptor: Descriptor, tag: str | None = None) -> None:
        """Append *descriptor* to ``index.json``."""
        tagged = {REF_NAME: tag} if tag is not None else {}
        self._entries.append(_members(replace(descriptor, annotations={**descriptor.annotations, **tagged})))
        self._write_index()

    def _add_manifest(
        self, config: Descriptor, layers: Iterable[Descriptor], annotations: Mapping[str, str] | None, **members: str
    ) -> Descriptor:
        media_type = "application/vnd.docker.distribution.manifest.v2+json" if self._docker else OCI_MANIFEST_TYPE
        document = {"schemaVersion": 2, "mediaType": media_type, **members, "config": _members(config)}
        document["layers"] = [_members(layer) for layer in layers]
        if annotations:
            document["annotations"] = dict(annotations)
        return self.add_json(document, media_type)

    def _listed(self, descriptor: Descriptor, tag: str | None) -> Descriptor:
        if tag is not None:
            self.list_entry(descriptor, tag)
        return descriptor

    def _write_index(self) -> None:
        document = {"schemaVersion": 2, "manifests": self._entries}
        (self.directory / "index.json").write_text(json.dumps(document, separators=(",", ":")))


def _copy(source: _Readable, sink: LayerSink) -> None:
    while chunk := source.read(_CHUNK):
        sink.write(chunk)


def _members(descriptor: Descriptor) -> dict[str, Any]:
    """The JSON form of a descriptor."""
    platform = descriptor.platform
    members: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if platform:
        members["platform"] = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            members["platform"]["variant"] = platform.variant
    if descriptor.annotations:
        members["annotations"] = dict(descriptor.annotations)
    return members
