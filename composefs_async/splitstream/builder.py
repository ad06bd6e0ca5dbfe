"""Builds a stream whose objects are stored elsewhere meanwhile, and whose names come in any order."""

from __future__ import annotations

from collections import deque

from ..digest import Algorithm, ObjectId
from ..results import StoredObject
from .protocols import Buffer, ObjectHandle, ObjectSink
from .writer import PendingReference, SplitstreamWriter

__all__ = ["SplitstreamBuilder"]


class SplitstreamBuilder:
    """A `SplitstreamWriter` for content that arrives before its object ids do.

    The bytes are those of the writer given the same content, with its names added in sorted order.  Handles
    that are done are replaced by ids in the order of the pushes, so that memory stays flat as long as the oldest
    one does not lag.

    Args:
        sink: where `push_external` stores bytes; an `Algorithm` alone will do if only handles are pushed.
        content_type: any number of 64 bits, such as `OCI_LAYER`.
    """

    def __init__(self, sink: ObjectSink | Algorithm, content_type: int) -> None:
        self._writer = SplitstreamWriter(sink, content_type)
        self._handles: deque[tuple[ObjectHandle, PendingReference]] = deque()
        self._names: dict[str, ObjectId] = {}

    @property
    def pending(self) -> tuple[ObjectHandle, ...]:
        """The handles pushed and not replaced yet: what to wait for before `finish`."""
        return tuple(handle for handle, _ in self._handles)

    def push_inline(self, data: Buffer) -> None:
        """Keep *data* in the stream itself.  Copies it."""
        self._writer.write_inline(data)

    def push_external(self, content: Buffer | StoredObject | ObjectHandle) -> None:
        """Refer to an object: bytes are stored by the sink at once, a handle is asked when it is done.

        Raises whatever the sink raises, or an earlier handle that has failed by now.
        """
        if isinstance(content, StoredObject):
            self._writer.write_reference(content.id)
            self._writer.add_external_size(content.size)
        elif isinstance(content, bytes | bytearray | memoryview):
            self._writer.write_external(content)
        else:
            self._handles.append((content, self._writer.reserve_reference()))
        while self._handles and self._handles[0][0].done():
            self._resolve_first()

    def add_named_stream_ref(self, name: str, stream_id: ObjectId) -> None:
        """Refer to another stream by *name*; if a name is given again only its last stream is kept.

        That the name is valid is checked by `finish`.
        """
        self._names[name] = stream_id

    def finish(self) -> bytes:
        """The whole file.  Asks every handle for its result, which may block as the handles do.

        Raises what a handle raises, and then can be called again.

        Raises:
            InvalidNameError: the name of a reference cannot be written.
        """
        while self._handles:
            self._resolve_first()
        for name, stream_id in sorted(self._names.items()):
            self._writer.add_named_stream_ref(name, stream_id)
        return self._writer.done()

    def _resolve_first(self) -> None:
        handle, place = self._handles[0]
        stored = handle.result()
        place.resolve(stored.id)
        self._handles.popleft()
        self._writer.add_external_size(stored.size)
