"""In which form a layer leaves: as it was shipped, if that can be had, unpacked, or packed anew; blocks.

Owns packing (`Packed`) and where bytes come from. The same layer packs to the same bytes with the same versions of
zlib and libzstd; gzip is CPython's zlib, whose output does not depend on the pieces that it is fed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Literal, TypeAlias

from ..._repo.state import RepoState
from ..._zstd import zstd
from ...digest import ObjectId
from ...errors import DigestMismatchError, ObjectNotFoundError, OciError
from ...naming import layer_stream
from ...repository import Repository, state_of
from ...splitstream import OCI_LAYER
from ..catalogue import OciImage
from ..documents import Descriptor, ImageLayer, content_hasher
from ..kept_blobs import kept_blob, opened_blob, stored_as_blob

__all__ = ["Form", "OutLayer", "original_layer", "packed_layer", "parse_form", "plain_layer", "spool_file"]

Form: TypeAlias = Literal["auto", "original", "plain", "gzip", "zstd"]
_FORMS: dict[str, Form] = {"auto": "auto", "original": "original", "plain": "plain", "gzip": "gzip", "zstd": "zstd"}
_LEVELS = {"gzip": 6, "zstd": 3}
_MEDIA_TYPES = {
    "plain": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_PIECE = 1 << 20
_SMALL = 64 << 10  # most files fit into one read of it
_OBJECT_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GZIP = 31  # wbits of zlib: a gzip header, in which the time is 0 and the name is missing


@dataclass(frozen=True, slots=True)
class OutLayer:
    """A layer as it leaves."""

    descriptor: Descriptor
    pieces: Callable[[], Iterator[bytes]]
    """Its bytes, as often as somebody asks."""
    changed: bool = False
    """It is not what the manifest says."""


def parse_form(text: str) -> tuple[Form, int | None]:
    """``auto``, ``original``, ``plain``, ``gzip`` or ``zstd``, the last two perhaps with ``:LEVEL``.

    Raises:
        OciError: *text* is anything else.
    """
    name, colon, level = text.partition(":")
    form = _FORMS.get(name)
    if form is None or (colon and (name not in _LEVELS or not level.isdecimal())):
        raise OciError(f"layers {text!r}", "not one of auto, original, plain, gzip[:LEVEL], zstd[:LEVEL]")
    highest = 9 if name == "gzip" else 22
    if colon and not 1 <= int(level) <= highest:
        raise OciError(f"layers {text!r}", f"levels of {name} are 1 to {highest}")
    return form, int(level) if colon else None


def original_layer(repo: Repository, image: OciImage, layer: ImageLayer) -> OutLayer | None:
    """A layer as the manifest has it; None if its bytes cannot be had."""
    state, digest = state_of(repo), layer.descriptor.digest
    found = kept_blob(state, digest)
    if found is None and digest == layer.name:
        found = stored_as_blob(state, layer_stream(layer.name), image.layers[layer.name])
        if found is None:
            return OutLayer(layer.descriptor, lambda: _verified(repo, layer.name))
    if found is None:
        return None
    object_id, size = found, layer.descriptor.size
    return OutLayer(layer.descriptor, lambda: _object(state, object_id, size))


def plain_layer(repo: Repository, image: OciImage, layer: ImageLayer) -> OutLayer:
    """A layer unpacked."""
    with repo.open_stream(layer_stream(layer.name), image.layers[layer.name]) as reader:
        size = reader.stream_size
    descriptor = Descriptor(_MEDIA_TYPES["plain"], layer.name, size)
    return OutLayer(descriptor, lambda: _verified(repo, layer.name), layer.descriptor.digest != layer.name)


def packed_layer(repo: Repository, layer: ImageLayer, form: str, level: int | None, spool: IO[bytes]) -> OutLayer:
    """A layer packed anew into the file *spool*, which must stay open as long as the layer is of use."""
    level = _LEVELS[form] if level is None else level
    packer = _Gzip(level) if form == "gzip" else _Zstd(level)
    hasher, size = hashlib.sha256(), 0
    for piece in _verified(repo, layer.name):
        size += _emit(packer.feed(piece), hasher, spool)
    size += _emit(packer.end(), hasher, spool)
    spool.flush()
    descriptor = Descriptor(_MEDIA_TYPES[form], f"sha256:{hasher.hexdigest()}", size)
    return OutLayer(descriptor, lambda: _pieces(spool.fileno(), size), True)


def spool_file(directory: str | None) -> IO[bytes]:
    """A file without a name for a packed layer; where the destination is, if that is a directory."""
    return tempfile.TemporaryFile(dir=directory)


def _emit(packed: bytes, hasher: hashlib._Hash, spool: IO[bytes]) -> int:
    hasher.update(packed)
    spool.write(packed)
    return len(packed)


class _Gzip:
    def __init__(self, level: int) -> None:
        packer = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
        self.feed, self.end = packer.compress, packer.flush


class _Zstd:
    def __init__(self, level: int) -> None:
        packer = zstd.ZstdCompressor(level)
        self.feed, self.end = packer.compress, packer.flush


def _verified(repo: Repository, diff_id: str) -> Iterator[bytes]:
    """The tar of a layer in pieces of about a mebibyte, compared with *diff_id* at the end.

    That covers every byte of its objects, which are therefore not measured one by one.

    Raises:
        DigestMismatchError: after the last piece; what was given out before is not to be used.
    """
    state, name, hasher = state_of(repo), layer_stream(diff_id), content_hasher("layer", diff_id)
    with repo.open_stream(name, content_type=OCI_LAYER) as reader:
        parts: list[bytes] = []
        size = 0
        for part in _parts(state, reader.chunks()):
            parts.append(part)
            size += len(part)
            if size >= _PIECE:
                piece, parts, size = b"".join(parts), [], 0
                hasher.update(piece)
                yield piece
        piece = b"".join(parts)
        hasher.update(piece)
        yield piece
    found = f"{diff_id.partition(':')[0]}:{hasher.hexdigest()}"
    if found != diff_id:
        raise DigestMismatchError(f"layer {diff_id}", diff_id, found)


def _parts(state: RepoState, chunks: Iterator[bytes | ObjectId]) -> Iterator[bytes]:
    for chunk in chunks:
        if not isinstance(chunk, ObjectId):
            yield chunk
            continue
        try:
            fd = os.open(chunk.path, _OBJECT_FLAGS, dir_fd=state.objects_fd)
        except FileNotFoundError:
            raise ObjectNotFoundError(chunk.hex()) from None
        try:
            size = _SMALL
            while part := os.read(fd, size):
                yield part
                size = _PIECE if len(part) == size else _SMALL
        finally:
            os.close(fd)


def _object(state: RepoState, object_id: ObjectId, size: int) -> Iterator[bytes]:
    with opened_blob(state, object_id) as fd:
        yield from _pieces(fd, size)


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    offset = 0
    while offset < size:
        piece = os.pread(fd, min(_PIECE, size - offset), offset)
        if not piece:
            raise OciError("layer", f"it ends after {offset} of {size} bytes")
        offset += len(piece)
        yield piece
