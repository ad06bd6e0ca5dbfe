"""Turns inline bytes and references into the bytes of a splitstream file; stores nothing by itself.

External content goes to an `ObjectSink`, at once or by whoever drives the writer (`PendingReference`).  The
file is built in memory, but the body is compressed while it grows: what is held uncompressed is the inline
run that is still open, since its length stands before it, and all that follows the first unresolved reference.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable

from ..digest import Algorithm, ObjectId
from ..errors import InvalidNameError
from ..results import StoredObject
from ._zstd import SectionCompressor
from .format import HEADER_SIZE, INFO_SIZE, U64_MAX, Header, Info, Section, pack_header, pack_info
from .protocols import Buffer, ObjectSink

__all__ = ["PendingReference", "SplitstreamWriter"]

_CHUNK = struct.Struct("<q")
_PLACE = bytes(_CHUNK.size)
_COMPRESS_AT = 128 * 1024  # the input block of libzstd: smaller pieces only cost calls


class PendingReference:
    """A place in a stream for an object whose id is not known yet.

    Not thread-safe: resolve it where the writer itself is used.
    """

    __slots__ = ("_writer", "data", "id", "offset")

    def __init__(self, writer: SplitstreamWriter, offset: int, data: bytes | None) -> None:
        self._writer = writer
        self.offset: int = offset
        """Of the place in the uncompressed body."""
        self.data = data
        """What is to be stored; None if somebody else has it, and after `resolve`."""
        self.id: ObjectId | None = None

    def resolve(self, object_id: ObjectId) -> None:
        """Tell the id of the object; once, and in any order among the references of a writer.

        Raises:
            ValueError: it has been told already.
            AlgorithmMismatchError: the id is not of the writer's algorithm.
        """
        if self.id is not None:
            raise ValueError("a pending reference can be resolved only once")
        self.id = object_id.require(self._writer.algorithm)
        self.data = None
        self._writer._number_resolved()


class SplitstreamWriter:
    """Writes one stream, in the order of the calls.  Does not block, except where the sink does.

    The result is byte for byte what composefs-rs writes for the same calls if both use one version of libzstd.

    Args:
        sink: where `write_external` stores; an `Algorithm` alone will do for a writer that only refers to objects.
        content_type: any number of 64 bits, such as `OCI_LAYER`.
    """

    def __init__(self, sink: ObjectSink | Algorithm, content_type: int) -> None:
        if not 0 <= content_type <= U64_MAX:
            raise ValueError(f"a content type is an unsigned number of 64 bits, not {content_type}")
        self._sink = None if isinstance(sink, Algorithm) else sink
        self.algorithm: Algorithm = sink if isinstance(sink, Algorithm) else sink.algorithm
        self.content_type = content_type
        self._stream_size = 0
        self._object_refs: dict[ObjectId, int] = {}
        self._stream_refs: dict[ObjectId, int] = {}
        self._names: dict[bytes, int] = {}
        self._body = bytearray()
        self._base = 0  # offset of self._body[0] in the uncompressed body
        self._run: int | None = None  # offset of the open inline run's length
        self._places: deque[PendingReference] = deque()
        self._to_store: list[PendingReference] = []
        self._compressor = SectionCompressor()
        self._packed: list[bytes] = []
        self._finished = False

    @property
    def stream_size(self) -> int:
        """Size of the merged content so far in bytes, as it will be in the file."""
        return self._stream_size

    # -- the body ------------------------------------------------------------------------------

    def write_inline(self, data: Buffer) -> None:
        """Keep *data* in the stream itself.  Copies it."""
        self._check_open()
        size = len(data)
        if size:
            if self._run is None:
                self._run = self._base + len(self._body)
                self._body += _PLACE
            self._body += data
            self._stream_size += size

    def write_reference(self, object_id: ObjectId) -> None:
        """Refer to an object that is in place already; its size is to be told by `add_external_size`."""
        self._check_open()
        self._close_run()
        if self._places:
            self._place(None).resolve(object_id)
        else:
            self._body += _CHUNK.pack(self._index(object_id))
            self._compress_full()

    def write_external(self, data: Buffer) -> StoredObject:
        """Store *data* as an object through the sink and refer to it.  Blocks as the sink does.

        Raises:
            ValueError: the writer was made without a sink.
        """
        self._check_open()
        if self._sink is None:
            raise ValueError("this writer was made without a sink to store objects in")
        stored = self._sink.ensure_object(data)
        self.write_reference(stored.id)
        self.add_external_size(len(data))
        return stored

    def write_external_parallel(self, data: Buffer) -> PendingReference:
        """Refer to an object that whoever drives the writer will store; copies *data* unless it is `bytes`.

        The driver takes what has gathered from `take_pending`, stores each `data`, many at a time, and resolves it::

            pending = writer.take_pending()
            for reference, stored in zip(pending, store_all([p.data for p in pending])):
                reference.resolve(stored.id)

        The content stays in memory until then, so a driver should not leave it all to the end.
        """
        reference = self.reserve_reference(bytes(data))
        self.add_external_size(len(data))
        self._to_store.append(reference)
        return reference

    def take_pending(self) -> list[PendingReference]:
        """The references of `write_external_parallel` that have not been taken yet, in the order of the calls."""
        taken, self._to_store = self._to_store, []
        return taken

    def reserve_reference(self, data: bytes | None = None) -> PendingReference:
        """Refer to an object that becomes known later; its size is to be told by `add_external_size`."""
        self._check_open()
        self._close_run()
        return self._place(data)

    def write_body(self, items: Iterable[Buffer | ObjectId], external_size: int) -> None:
        """Write many chunks at once: an `ObjectId` is a reference, any other bytes are inline content.

        The same as `write_inline` and `write_reference` for each in turn, for less time per item.

        Args:
            external_size: of all objects referred to, counted as often as they are, in bytes.
        """
        self._check_open()
        self.add_external_size(external_size)
        if self._places:
            self._write_behind_places(items)
            return
        body, base, run, inline_size = self._body, self._base, self._run, 0
        indices, pack, pack_into = self._object_refs, _CHUNK.pack, _CHUNK.pack_into
        try:
            for item in items:
                if type(item) is ObjectId:
                    if run is not None:
                        pack_into(body, run - base, run - base + 8 - len(body))
                        run = None
                    index = indices.get(item)
                    body += pack(self._index(item) if index is None else index)
                elif size := len(item):
                    if run is None:
                        run = base + len(body)
                        body += _PLACE
                    body += item
                    inline_size += size
        finally:
            self._run = run
            self._stream_size += inline_size
        self._compress_full()

    def add_external_size(self, size: int) -> None:
        """Count *size* bytes of referenced objects into the size of the merged content."""
        if size < 0 or self._stream_size + size > U64_MAX:
            raise ValueError(f"the size of a stream is an unsigned number of 64 bits: {self._stream_size} + {size}")
        self._stream_size += size

    # -- the tables ----------------------------------------------------------------------------

    def add_object_ref(self, object_id: ObjectId) -> int:
        """Keep an object alive through the stream without being part of its content; returns its index.

        Raises:
            ValueError: references are pending, so that the next index is not known.
        """
        self._check_open()
        if self._places:
            raise ValueError("an object reference cannot be numbered while earlier ones are pending")
        return self._index(object_id)

    def lookup_object_ref(self, object_id: ObjectId) -> int | None:
        """The index of an object; None if it has none, or none yet because a reference before it is pending."""
        return self._object_refs.get(object_id)

    def add_named_stream_ref(self, name: str, stream_id: ObjectId) -> None:
        """Refer to another stream by *name*; a name given again moves to the new stream.

        A stream once referred to stays in the file and is kept alive, also when its last name has moved.

        Raises:
            InvalidNameError: *name* contains NUL, which ends a name in the file, or is no valid Unicode.
        """
        self._check_open()
        encoded = _encode_name(name)
        stream_id.require(self.algorithm)
        self._names[encoded] = self._stream_refs.setdefault(stream_id, len(self._stream_refs))

    def done(self) -> bytes:
        """The whole file.  Ends the writer, which cannot be used again.

        Raises:
            ValueError: a pending reference is unresolved, or the writer has ended before.
        """
        self._check_open()
        if self._places:
            missing = sum(place.id is None for place in self._places)
            raise ValueError(f"{missing} pending references have not been resolved")
        self._close_run()
        self._finished = True
        self._compress()
        packed_body = b"".join((*self._packed, self._compressor.finish()))
        stream_refs, object_refs = b"".join(self._stream_refs), b"".join(self._object_refs)
        return self._assemble(stream_refs, object_refs, self._pack_names(), packed_body)

    # -- inside --------------------------------------------------------------------------------

    def _assemble(self, stream_refs: bytes, object_refs: bytes, named_refs: bytes, stream: bytes) -> bytes:
        at = HEADER_SIZE + INFO_SIZE
        sections: list[Section] = []
        for content in (stream_refs, object_refs, named_refs, stream):
            sections.append(Section(at, at + len(content)))
            at += len(content)
        info = Info(sections[0], sections[1], sections[3], sections[2], self.content_type, self._stream_size)
        header = Header(self.algorithm, Section(HEADER_SIZE, HEADER_SIZE + INFO_SIZE))
        return b"".join((pack_header(header), pack_info(info), stream_refs, object_refs, named_refs, stream))

    def _pack_names(self) -> bytes:
        compressor = SectionCompressor()
        records = b"".join(b"%d:%s\0" % (index, name) for name, index in sorted(self._names.items()))
        return compressor.compress(memoryview(records)) + compressor.finish()

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("the stream has been finished")

    def _index(self, object_id: ObjectId) -> int:
        index = self._object_refs.get(object_id)
        if index is None:
            index = len(self._object_refs)
            self._object_refs[object_id.require(self.algorithm)] = index
        return index

    def _close_run(self) -> None:
        if self._run is not None:
            at = self._run - self._base
            _CHUNK.pack_into(self._body, at, at + _CHUNK.size - len(self._body))
            self._run = None

    def _place(self, data: bytes | None) -> PendingReference:
        place = PendingReference(self, self._base + len(self._body), data)
        self._places.append(place)
        self._body += _PLACE
        return place

    def _write_behind_places(self, items: Iterable[Buffer | ObjectId]) -> None:
        for item in items:
            if type(item) is ObjectId:
                self.write_reference(item)
            else:
                self.write_inline(item)

    def _number_resolved(self) -> None:
        # Numbers follow first appearance, so a place can be filled only when all before it are.
        while self._places and (object_id := self._places[0].id) is not None:
            place = self._places.popleft()
            _CHUNK.pack_into(self._body, place.offset - self._base, self._index(object_id))
        self._compress_full()

    def _compress_full(self) -> None:
        if len(self._body) >= _COMPRESS_AT:
            self._compress()

    def _compress(self) -> None:
        """Compress all before the first place or the open run, whichever comes first."""
        end = self._base + len(self._body)
        limit = self._places[0].offset if self._places else end if self._run is None else self._run
        count = limit - self._base
        if not count:
            return
        with memoryview(self._body) as view, view[:count] as ready:
            packed = self._compressor.compress(ready)
        if packed:
            self._packed.append(packed)
        del self._body[:count]
        self._base = limit


def _encode_name(name: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidNameError(name, "it is not valid Unicode") from None
    if 0 in encoded:
        raise InvalidNameError(name, "it contains a NUL character")
    return encoded
