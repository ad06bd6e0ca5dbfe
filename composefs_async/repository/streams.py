"""Writing, naming and reading streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from .._aio import bulk
from .._aio.hops import hop, opening_hop
from .._repo import publish, streams
from .._repo.streams import OpenStream
from ..digest import ObjectId
from ..splitstream import SplitstreamWriter
from .objects import ObjectOperations

__all__ = ["StreamOperations"]


class StreamOperations(ObjectOperations):
    """Splitstreams and their references."""

    def create_stream(self, content_type: int) -> SplitstreamWriter:
        """Create a writer that stores external content in this repository; give it to `write_stream`.

        Args:
            content_type: any number of 64 bits; OCI's are in `composefs_async.splitstream`.
        """
        return SplitstreamWriter(self, content_type)

    def has_stream(self, name: str) -> ObjectId | None:
        """Return the id of the stream *name* (or ``refs/…``) if it is there with its object, else None.

        Raises:
            InvalidNameError: no stream can be called so.
        """
        return streams.has_stream(self._state, name)

    async def has_stream_async(self, name: str) -> ObjectId | None:
        """Return the id of a stream, or None, like `has_stream`, in a worker thread."""
        return await hop(self.has_stream, name)

    def write_stream(self, writer: SplitstreamWriter, name: str, reference: str | None = None) -> ObjectId:
        """Finish *writer*, store the stream and publish it under *name* and *reference*.  Durable on return.

        A crash leaves what `register_stream` says, and objects that the next collection removes.

        Raises:
            InvalidNameError: before anything is stored; the writer can be used again.
        """
        return streams.write_stream(self._state, writer, name, reference)

    async def write_stream_async(self, writer: SplitstreamWriter, name: str, reference: str | None = None) -> ObjectId:
        """Store and publish a stream like `write_stream`, in a worker thread.  Durable.

        First it stores what `SplitstreamWriter.write_external_parallel` left pending.
        """
        await bulk.resolve_pending(self._state, writer)
        return await hop(self.write_stream, writer, name, reference)

    def register_stream(self, object_id: ObjectId, name: str, reference: str | None = None) -> None:
        """Publish a stored splitstream: syncfs, then the name, then the reference, then both made durable.

        A crash leaves none, the first, or both of the names, each complete with all it reaches.

        Raises:
            ObjectNotFoundError, InvalidNameError
        """
        streams.register_stream(self._state, object_id, name, reference)

    async def register_stream_async(self, object_id: ObjectId, name: str, reference: str | None = None) -> None:
        """Publish a stream like `register_stream`, in a worker thread.  Durable."""
        await hop(self.register_stream, object_id, name, reference)

    def ensure_stream(
        self,
        name: str,
        content_type: int,
        fill: Callable[[SplitstreamWriter], object],
        reference: str | None = None,
    ) -> ObjectId:
        """Return the stream *name*, which *fill* writes unless it is there, and name it.  Durable on return.

        Raises:
            InvalidNameError, and what *fill* raises; then nothing has been published.
        """
        make = partial(self.create_stream, content_type)
        return streams.ensure_stream(self._state, make, name, fill, reference)

    async def ensure_stream_async(
        self,
        name: str,
        content_type: int,
        fill: Callable[[SplitstreamWriter], object],
        reference: str | None = None,
    ) -> ObjectId:
        """Return a stream, or make it by *fill*, like `ensure_stream`; *fill* runs in a worker thread."""
        return await hop(self.ensure_stream, name, content_type, fill, reference)

    def has_named_stream(self, reference: str) -> bool:
        """Return True if *reference* points at a stream that is there."""
        return streams.has_named_stream(self._state, reference)

    async def has_named_stream_async(self, reference: str) -> bool:
        """Return the stream behind a reference, or None, like `has_named_stream`, in a worker thread."""
        return await hop(self.has_named_stream, reference)

    def name_stream(self, name: str, reference: str) -> None:
        """Point *reference* at the stream *name*.  Durable on return.

        Raises:
            StreamNotFoundError, InvalidNameError
        """
        streams.name_stream(self._state, name, reference)

    async def name_stream_async(self, name: str, reference: str) -> None:
        """Point a reference at a stream like `name_stream`, in a worker thread.  Durable."""
        await hop(self.name_stream, name, reference)

    def unname_stream(self, reference: str) -> bool:
        """Remove *reference*, durably; return False if it was not there."""
        return publish.remove_reference(self._state, "streams", reference)

    async def unname_stream_async(self, reference: str) -> bool:
        """Remove a reference to a stream like `unname_stream`, in a worker thread.  Durable."""
        return await hop(self.unname_stream, reference)

    def named_streams(self, below: str = "") -> list[tuple[str, str]]:
        """Return sorted pairs: a reference, without *below*, and the name of the stream it points at."""
        return list(publish.references(self._state, "streams", below))

    async def named_streams_async(self, below: str = "") -> list[tuple[str, str]]:
        """Return the named streams like `named_streams`, in a worker thread."""
        return await hop(self.named_streams, below)

    def open_stream(self, name: str, object_id: ObjectId | None = None, content_type: int | None = None) -> OpenStream:
        """Open the stream *name* (or ``refs/…``), or the one that is the object *object_id*, for reading.

        The caller closes it, or uses it in a ``with`` block.

        Args:
            content_type: what is expected; None accepts any.

        Raises:
            StreamNotFoundError, ObjectNotFoundError, SplitstreamError, IntegrityError
        """
        return streams.open_stream(self._state, name, object_id, content_type)

    async def open_stream_async(
        self, name: str, object_id: ObjectId | None = None, content_type: int | None = None
    ) -> OpenStream:
        """Open a stream like `open_stream`, in a worker thread; its methods that read the body block."""
        return await opening_hop(OpenStream.close, self.open_stream, name, object_id, content_type)

    def merge_splitstream(
        self, name: str, object_id: ObjectId | None = None, content_type: int | None = None
    ) -> Iterator[bytes]:
        """Yield the content of a stream as it came in, in pieces of at most 1 MiB.

        Each object is checked when its last piece has been given out, so a consumer publishes what it got
        only after the end.  An iterator that is left early is to be closed.

        Raises:
            StreamNotFoundError, ObjectNotFoundError, SplitstreamError, IntegrityError
        """
        return self._state.lifetime.steps(streams.merge_splitstream(self._state, name, object_id, content_type))

    def merge_splitstream_async(
        self, name: str, object_id: ObjectId | None = None, content_type: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the content of a stream like `merge_splitstream`, read in worker threads a few pieces at a time."""
        return bulk.iterate(partial(self.merge_splitstream, name, object_id, content_type))
