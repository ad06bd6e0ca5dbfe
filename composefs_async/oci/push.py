"""Images of the repository into a registry: bit for bit, or not at all unless asked to pack layers anew.

Owns where the bytes of each layer come from.  The repository has layers unpacked; as they were shipped they are where
`--keep-blobs` kept them, where the image came from, or, if they are not packed at all, here.  Does not own the
protocol (`composefs_async.registry.upload`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Literal, TypeAlias

from anyio import CapacityLimiter, create_task_group, current_time

from .._aio.bulk import iterate
from .._aio.groups import single_error
from .._aio.hops import hop, using
from .._aio.operations import async_operation
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import AuthenticationError, ComposefsError, ImageNotFoundError, OciError
from ..naming import layer_stream
from ..progress import BlobPushed, BytesSent, ProgressCallback
from ..registry.access import Access, Transfer
from ..registry.content import Content, from_bytes, from_file, from_registry
from ..registry.manifests import FetchedDocument, digest_of
from ..registry.reading import head_blob, head_manifest
from ..registry.reference import Reference, check_tag_name, parse_reference
from ..registry.session import Place, Session
from ..registry.upload import push_blob, push_manifest
from ..repository import Repository, state_of
from .catalogue import OciImage, open_image
from .documents import Descriptor, LayerCompression, image_layers
from .kept_blobs import kept_blob, opened_blob, stored_as_blob
from .origins import read_origins
from .stored_layers import layer_content
from .tar.writer import LayerSink

__all__ = ["PushResult", "PushedLayer", "Repack", "push"]

Repack: TypeAlias = Literal["gzip", "zstd", "none"]
How: TypeAlias = Literal["present", "mounted", "kept", "plain", "origin", "repacked"]

Work: TypeAlias = Callable[[], Awaitable[None]]

_AT_ONCE = 4
_READ_SIZE = 512 << 10
_LEVELS: dict[str, int] = {"gzip": 6, "zstd": 3, "none": 0}
_MEDIA_TYPES: dict[tuple[bool, str], str] = {
    (False, "none"): "application/vnd.oci.image.layer.v1.tar",
    (False, "gzip"): "application/vnd.oci.image.layer.v1.tar+gzip",
    (False, "zstd"): "application/vnd.oci.image.layer.v1.tar+zstd",
    (True, "none"): "application/vnd.docker.image.rootfs.diff.tar",
    (True, "gzip"): "application/vnd.docker.image.rootfs.diff.tar.gzip",
    (True, "zstd"): "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
_OF_PACKING = ("io.github.containers.zstd-chunked.", "containerd.io/snapshot/stargz/", "io.containers.estargz.")
"""Annotations of a layer that speak of how it is packed."""
_REPORT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class PushedLayer:
    """A layer that the registry has."""

    digest: str
    """As shipped."""
    size: int
    """As shipped, in bytes."""
    how: How


@dataclass(frozen=True, slots=True)
class PushResult:
    """An image that a registry has under a name."""

    reference: str
    manifest_digest: str
    layers: tuple[PushedLayer, ...]
    """In the order of the manifest."""
    original_digest: str
    """Digest of the manifest in the repository; another one if layers were packed anew."""


@async_operation
async def push(
    repo: Repository,
    name: str,
    destination: str,
    *,
    access: Access | None = None,
    transfer: Transfer | None = None,
    origin: str | None = None,
    repack: Repack | None = None,
    level: int | None = None,
    force: bool = False,
    tags: Sequence[str] = (),
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> PushResult:
    """Push the image *name* (a tag, or ``@DIGEST``) as *destination*, ``docker://HOST/NAME[:TAG]``.

    Layers, config and manifest keep their digests.  The bytes of a layer are taken from the registry itself (it has
    them, or mounts them from another repository), a blob that was kept, a layer that is not packed, or the registry
    that the image was pulled from.

    Args:
        origin: a reference to a registry that has the layers, instead of those that the image was pulled by.
        repack: pack layers that cannot be had as they were shipped anew; they and the manifest get other digests.
        level: of that compression; 6 for gzip and 3 for zstd if not given.
        force: with *repack*, replace another image of that name.
        tags: more tags for the image.
        dry_run: send nothing, and tell where each layer would come from.
        progress: hears of each blob.

    Raises:
        StreamNotFoundError: there is no such image.
        OciError: layers cannot be had as they were shipped; the message lists them.
        AuthenticationError, RegistryError, TransportError, DigestMismatchError
    """
    reference = parse_reference(destination)
    state = state_of(repo)
    session = await Session.open(access or Access(), transfer or Transfer(), progress)
    try:
        async with using(state):
            image = await hop(open_image, repo, name)
            if image.manifest_id is None:
                raise OciError(name, "it has no manifest; 'oci upgrade' makes one")
            with ExitStack() as stack:
                pushing = _Push(repo, state, session, reference, image, stack, level)
                await pushing.find_origins(origin)
                return await pushing.run(repack, force, [check_tag_name(tag) for tag in tags], dry_run)
    finally:
        await session.aclose()


@dataclass(slots=True)
class _Layer:
    """One layer and how the registry will get it."""

    descriptor: Descriptor
    name: str
    """In the repository."""
    how: How | None = None
    content: Content | None = None
    mount_from: tuple[str, ...] = ()


@dataclass(slots=True)
class _Origin:
    reference: Reference
    places: list[Place] = field(default_factory=list[Place])


class _Push:
    def __init__(
        self,
        repo: Repository,
        state: RepoState,
        session: Session,
        reference: Reference,
        image: OciImage,
        stack: ExitStack,
        level: int | None,
    ) -> None:
        self._repo, self._state, self._session = repo, state, session
        self._reference, self._image, self._stack, self._level = reference, image, stack, level
        self._place: Place = session.places(reference, push=True)[-1]
        self._origins: list[_Origin] = []
        self._limiter = CapacityLimiter(_AT_ONCE)

    async def find_origins(self, given: str | None) -> None:
        """Where the layers may be had as they were shipped."""
        if given is not None:
            texts = [given]
        else:
            origins = await hop(read_origins, self._state)
            texts = origins.references.get(self._image.manifest.digest, [])[::-1]
        for text in texts:
            try:
                reference = parse_reference(text)
                self._origins.append(_Origin(reference, self._session.places(reference)))
            except ComposefsError:
                if given is not None:
                    raise

    async def run(self, repack: Repack | None, force: bool, tags: list[str], dry_run: bool) -> PushResult:
        manifest = self._image.manifest
        named = image_layers(manifest, self._image.config)
        layers = [_Layer(layer.descriptor, layer.name) for layer in named]
        by_digest = {layer.descriptor.digest: layer for layer in layers}
        await self._each([partial(self._plan, layer) for layer in by_digest.values()])
        lacking = [layer for layer in by_digest.values() if layer.how is None]
        document = FetchedDocument(manifest.digest, manifest.media_type, manifest.raw)
        if lacking and repack is None:
            raise OciError(
                f"image {manifest.digest}",
                "these layers cannot be had as they were shipped: "
                + ", ".join(f"{layer.descriptor.digest} ({layer.descriptor.size} bytes)" for layer in lacking)
                + "; --repack packs them anew, which changes digests",
            )
        if lacking and repack is not None:
            if not force:
                await self._refuse_to_replace()
            if dry_run:
                for layer in lacking:
                    layer.how = "repacked"
            else:
                for layer in lacking:
                    await self._repack(layer, repack)
                document = self._changed(by_digest)
        if not dry_run:
            await self._each([partial(self._send, layer) for layer in _largest_first(by_digest)])
            await self._send_config()
            await self._put(document, tags)
        pushed = tuple(
            PushedLayer(found.descriptor.digest, found.descriptor.size, found.how or "present")
            for found in (by_digest[layer.descriptor.digest] for layer in named)
        )
        return PushResult(str(self._reference), document.digest, pushed, manifest.digest)

    async def _each(self, works: list[Work]) -> None:
        async def limited(work: Work) -> None:
            async with self._limiter:
                await work()

        with single_error():
            async with create_task_group() as tasks:
                for work in works:
                    tasks.start_soon(limited, work)

    # -- where a layer comes from --------------------------------------------------------------

    async def _plan(self, layer: _Layer) -> None:
        digest, size = layer.descriptor.digest, layer.descriptor.size
        with suppress(AuthenticationError):  # there are tokens that allow to push and not to look
            if await head_blob(self._session, self._place, digest, "pull,push") is not None:
                layer.how = "present"
                return
        layer.mount_from = tuple(
            origin.reference.path for origin in self._origins if origin.reference.domain == self._reference.domain
        )
        object_id = await hop(self._blob_of, layer)
        if object_id is not None:
            layer.how, layer.content = "kept", Content(digest, size, partial(self._read_object, object_id))
        elif digest == layer.name:
            layer.how, layer.content = "plain", Content(digest, size, partial(self._read_tar, digest))
        else:
            await self._plan_origin(layer)

    def _blob_of(self, layer: _Layer) -> ObjectId | None:
        found = kept_blob(self._state, layer.descriptor.digest)
        if found is None and layer.descriptor.digest == layer.name:
            found = stored_as_blob(self._state, layer_stream(layer.name), self._image.layers[layer.name])
        return found

    async def _plan_origin(self, layer: _Layer) -> None:
        digest, size = layer.descriptor.digest, layer.descriptor.size
        for origin in self._origins:
            for place in origin.places:
                try:
                    found = await head_blob(self._session, place, digest)
                except ComposefsError:
                    continue
                if found in (-1, size):
                    layer.how = "mounted" if place.path in layer.mount_from else "origin"
                    layer.content = from_registry(self._session, [place], digest, size)
                    return

    async def _read_object(self, object_id: ObjectId, start: int, end: int) -> AsyncIterator[bytes]:
        async for piece in iterate(partial(_object_pieces, self._state, object_id, start, end)):
            yield piece

    async def _read_tar(self, diff_id: str, start: int, end: int) -> AsyncIterator[bytes]:
        async for piece in iterate(partial(_part, partial(layer_content, self._repo, diff_id), start, end)):
            yield piece

    # -- packing anew --------------------------------------------------------------------------

    async def _repack(self, layer: _Layer, repack: Repack) -> None:
        made_file = await hop(lambda: tempfile.NamedTemporaryFile("w+b", prefix="composefs-async-push-"))  # noqa: SIM115
        file = self._stack.enter_context(made_file)
        compression: LayerCompression = repack
        level = _LEVELS[repack] if self._level is None else self._level
        media_type = _MEDIA_TYPES["docker" in layer.descriptor.media_type, repack]
        made = await hop(_pack, self._repo, layer.name, file, compression, level, media_type)
        layer.descriptor, layer.how = made, "repacked"
        layer.content = from_file(made.digest, made.size, Path(file.name))

    def _changed(self, layers: dict[str, _Layer]) -> FetchedDocument:
        """The manifest with the layers that were packed anew, and otherwise as it was."""
        document = json.loads(self._image.manifest.raw)
        for entry in document["layers"]:
            layer = layers[entry["digest"]]
            if layer.how == "repacked":
                entry["mediaType"] = layer.descriptor.media_type
                entry["digest"], entry["size"] = layer.descriptor.digest, layer.descriptor.size
                annotations = entry.get("annotations") or {}
                kept = {key: value for key, value in annotations.items() if not key.startswith(_OF_PACKING)}
                if kept != annotations:
                    entry["annotations"] = kept
        raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        return FetchedDocument(digest_of(raw), self._image.manifest.media_type, raw)

    async def _refuse_to_replace(self) -> None:
        if self._reference.tag is None:
            return
        try:
            found = await head_manifest(self._session, self._place, self._reference)
        except ImageNotFoundError:
            return
        if found is not None:
            raise OciError(str(self._reference), f"it is another image, {found.digest}; --force replaces it")

    # -- sending -------------------------------------------------------------------------------

    async def _send(self, layer: _Layer) -> None:
        if layer.how != "present" and layer.content is not None:
            done = await push_blob(
                self._session,
                self._place,
                layer.content,
                mount_from=layer.mount_from,
                sent=self._observer(layer.content),
            )
            if done != "uploaded":
                layer.how = done
            elif layer.how == "mounted":
                layer.how = "origin"
        self._session.report(BlobPushed(layer.descriptor.digest, layer.descriptor.size, layer.how or "present"))

    def _observer(self, content: Content) -> partial[None]:
        return partial(_report, self._session, content, [0.0])

    async def _send_config(self) -> None:
        digest, raw = self._image.manifest.config.digest, self._image.config_raw
        how = await push_blob(self._session, self._place, from_bytes(digest, raw))
        self._session.report(BlobPushed(digest, len(raw), "config" if how == "uploaded" else how))

    async def _put(self, document: FetchedDocument, tags: list[str]) -> None:
        if self._reference.digest is not None and self._reference.digest != document.digest:
            raise OciError(str(self._reference), f"the image's manifest has another digest, {document.digest}")
        for reference in (self._reference, *(self._reference.with_tag(tag) for tag in tags)):
            await push_manifest(self._session, self._place, reference, document)


def _largest_first(layers: dict[str, _Layer]) -> list[_Layer]:
    return sorted(layers.values(), key=lambda layer: -layer.descriptor.size)


def _report(session: Session, content: Content, last: list[float], sent: int) -> None:
    now = current_time()
    if now - last[0] >= _REPORT_SECONDS:
        last[0] = now
        session.report(BytesSent(content.digest, sent, content.size))


def _pack(
    repo: Repository, diff_id: str, file: IO[bytes], compression: LayerCompression, level: int, media_type: str
) -> Descriptor:
    """Pack a stored layer into a file."""
    sink = LayerSink(file, compression, level, None)
    for piece in layer_content(repo, diff_id):
        sink.write(piece)
    made = sink.finish(media_type)
    file.flush()
    return Descriptor(media_type, made, sink.layer.descriptor.size)


def _object_pieces(state: RepoState, object_id: ObjectId, start: int, end: int) -> Iterator[bytes]:
    with opened_blob(state, object_id) as fd:
        while start < end and (piece := os.pread(fd, min(_READ_SIZE, end - start), start)):
            yield piece
            start += len(piece)


def _part(begin: partial[Iterator[bytes]], start: int, end: int) -> Iterator[bytes]:
    """The pieces between two offsets."""
    offset = 0
    for piece in begin():
        part = piece[max(0, start - offset) : max(0, end - offset)]
        offset += len(piece)
        if part:
            yield part
        if offset >= end and end < offset:
            return
