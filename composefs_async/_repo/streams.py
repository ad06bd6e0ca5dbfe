"""Streams: splitstream files that are objects, known by names below ``streams/``."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Self

from .. import fsverity
from .._sys import files
from ..digest import ObjectId
from ..errors import DigestMismatchError, StreamNotFoundError
from ..splitstream import SplitstreamReader, SplitstreamWriter
from . import objects, publish
from .publish import Link
from .state import RepoState

__all__ = [
    "OpenStream",
    "ensure_stream",
    "has_named_stream",
    "has_stream",
    "merge_splitstream",
    "name_stream",
    "open_stream",
    "register_stream",
    "write_stream",
]

_READ_SIZE = 1 << 20


class FileSource:
    """The file behind a descriptor, which it owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            with files.naming_descriptor(fd):
                self.size: int = os.fstat(fd).st_size
        except OSError:
            self.close()
            raise

    def pread(self, size: int, offset: int, /) -> bytes:
        with files.naming_descriptor(self._fd):
            return os.pread(self._fd, size, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OpenStream(SplitstreamReader):
    """A reader that owns the file it reads; use it in a ``with`` block, or `close` it."""

    def __init__(self, source: FileSource, state: RepoState, content_type: int | None, name: str) -> None:
        self._file = source
        super().__init__(source, state.algorithm, content_type, name=name)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def has_stream(state: RepoState, name: str) -> ObjectId | None:
    """The id of the stream's object, if the name and the object are there."""
    object_id = publish.object_of(state, "streams", name)
    return object_id if object_id is not None and objects.has_object(state, object_id) else None


def has_named_stream(state: RepoState, reference: str) -> bool:
    return has_stream(state, f"refs/{publish.check_reference(reference)}") is not None


def open_stream(
    state: RepoState, name: str, object_id: ObjectId | None = None, content_type: int | None = None
) -> OpenStream:
    """Open by *object_id* if that is given, otherwise by name; measured like every object.

    Raises:
        StreamNotFoundError, ObjectNotFoundError, IntegrityError, SplitstreamError
    """
    if object_id is None:
        object_id = publish.object_of(state, "streams", name)
    if object_id is None:
        raise StreamNotFoundError(name)
    source = FileSource(objects.open_object(state, object_id))
    try:
        return OpenStream(source, state, content_type, name or object_id.hex())
    except BaseException:
        source.close()
        raise


def merge_splitstream(
    state: RepoState, name: str, object_id: ObjectId | None = None, content_type: int | None = None
) -> Generator[bytes]:
    """The original content in pieces of at most 1 MiB, the objects in it checked against their ids.

    An object is known to be corrupt only at its end, when its pieces have been given out already.
    """
    with open_stream(state, name, object_id, content_type) as reader:
        yield from reader.cat(lambda found: _object_pieces(state, found))


def _object_pieces(state: RepoState, object_id: ObjectId) -> Iterator[bytes]:
    hasher = None if state.secure else fsverity.Hasher(state.algorithm)
    with open(objects.open_object(state, object_id), "rb", buffering=0) as file:
        while piece := file.read(_READ_SIZE):
            if hasher:
                hasher.update(piece)
            yield piece
    if hasher and (found := hasher.id()) != object_id:
        raise DigestMismatchError(f"object {object_id.hex()}", object_id.hex(), found.hex())


def write_stream(state: RepoState, writer: SplitstreamWriter, name: str, reference: str | None = None) -> ObjectId:
    """Finish *writer*, store its file and publish it.  Durable when this returns."""
    _links(name, None, reference)  # a bad name must not cost the whole writer
    with state.shared():  # so that no gc of this handle takes any of it before it has a name
        for pending in writer.take_pending():
            pending.resolve(objects.ensure_object(state, pending.data or b"").id)
        stored = objects.ensure_object(state, writer.done())
        register_stream(state, stored.id, name, reference)
        return stored.id


def register_stream(state: RepoState, object_id: ObjectId, name: str, reference: str | None = None) -> None:
    """Publish an object that holds a splitstream: syncfs, the name, the reference, all durable.

    A crash leaves none, the first, or both of the names; what they lead to is complete.

    Raises:
        ObjectNotFoundError: there is no such object, so that the name would lead nowhere.
    """
    links = _links(name, object_id, reference)
    with state.shared():  # what has been looked for must not be collected before it has its name
        os.close(objects.open_object(state, object_id))
        publish.publish(state, links)


def _links(name: str, object_id: ObjectId | None, reference: str | None) -> list[Link]:
    target = object_id or ObjectId(bytes(32))
    links = [Link.to_object("streams", name, target)]
    return links if reference is None else [*links, Link.reference("streams", reference, name)]


def name_stream(state: RepoState, name: str, reference: str) -> None:
    """Let *reference* lead to the stream *name*, durably.

    Raises:
        StreamNotFoundError: there is no such stream; a dangling reference stops composefs-rs's gc.
    """
    link = Link.reference("streams", reference, name)
    with state.shared():
        if has_stream(state, name) is None:
            raise StreamNotFoundError(name)
        publish.publish(state, [link])


def ensure_stream(
    state: RepoState,
    make: Callable[[], SplitstreamWriter],
    name: str,
    fill: Callable[[SplitstreamWriter], object],
    reference: str | None = None,
) -> ObjectId:
    """The stream *name*, made by *fill* unless it is there; with its reference."""
    with state.shared():  # what has been found must not be collected before it has its reference
        object_id = has_stream(state, name)
        if object_id is None:
            writer = make()
            fill(writer)
            return write_stream(state, writer, name, reference)
        if reference is not None:
            name_stream(state, name, reference)
        return object_id
