"""Reads splitstream files of every generation that has a header; opens nothing and verifies no digest.

All of it is safe for untrusted input: a length is believed only after it was compared with what the file
holds, and content is handed over in bounded pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from ..digest import Algorithm, ObjectId
from ..errors import SplitstreamError
from .format import (
    CONTENT_TYPE_OFFSET,
    HEADER_SIZE,
    INFO_SIZE,
    RANGE_OFFSETS,
    Generation,
    Header,
    Info,
    Section,
    content_type_name,
    unpack_header,
    unpack_info,
)
from .protocols import PositionalSource
from .sections import MAX_REFS, PIECE, ObjectIds, PackedSection, parse_named_refs, read_section

__all__ = ["SplitstreamReader"]

_CHUNK = struct.Struct("<q")
_I64_MIN = -(2**63)
_INLINE = -1


class SplitstreamReader:
    """Reads one stream once, from front to back.  Blocks as *source* does, which stays the caller's to close.

    Header, tables and names are read and checked here; the content is unpacked and checked as it is read.
    What composefs-rs accepts is accepted: unknown flags, a longer info, sections in any order or overlapping,
    a false `stream_size`, adjacent inline chunks.  Only a body that claims to go on behind the end of the file, which
    it does not notice, is refused here: such a file has been cut.

    Args:
        source: the file; not closed.
        algorithm: of the repository; None accepts either.
        content_type: what is expected; None accepts any.
        name: of the stream, for messages.

    Raises:
        SplitstreamError: the file is damaged, of another content type, or was written before 2026-01.
        AlgorithmMismatchError: it belongs to a repository of the other algorithm.
    """

    def __init__(
        self,
        source: PositionalSource,
        algorithm: Algorithm | None = None,
        content_type: int | None = None,
        *,
        name: str = "",
    ) -> None:
        self._source, self._name = source, name
        self.header: Header = unpack_header(self._read_start(Section(0, HEADER_SIZE)), algorithm, name)
        self.info: Info = self._read_info(content_type)
        self.stream_refs: ObjectIds = self._read_ids(self.info.stream_refs, "stream reference")
        """Ids of the streams referred to, each once."""
        self.object_refs: ObjectIds = self._read_ids(self.info.object_refs, "object reference")
        """Ids of all objects that the content needs, or that are only kept alive by it."""
        names = PackedSection(source, self.info.named_refs, "named reference", name)
        self.named_refs: dict[str, ObjectId] = parse_named_refs(names, self.stream_refs, name)
        """Name and id of each named stream, in the order of the file."""
        self._body = PackedSection(source, self.info.stream, "stream", name)
        self._left = 0  # bytes of the current inline chunk that are still to be read

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm of the ids of its objects."""
        return self.header.algorithm

    @property
    def generation(self) -> Generation:
        """Generation of the file format, as its header says."""
        return self.header.generation

    @property
    def content_type(self) -> int:
        """Type of its content, one of the constants of `composefs_async.splitstream`."""
        return self.info.content_type

    @property
    def stream_size(self) -> int:
        """Size of the merged content in bytes, as the file claims; compare it with what was read."""
        return self.info.stream_size

    # -- the tables ----------------------------------------------------------------------------

    def lookup_named_ref(self, name: str) -> ObjectId | None:
        """The id of the stream known by *name* here."""
        return self.named_refs.get(name)

    def lookup_external_ref(self, index: int) -> ObjectId | None:
        """The id of an object by its index in the stream; None if there are not so many."""
        return self.object_refs[index] if 0 <= index < len(self.object_refs) else None

    # -- the content ---------------------------------------------------------------------------

    def chunks(self) -> Iterator[bytes | ObjectId]:
        """What follows, to the end: inline content as `bytes`, the content of an object as its `ObjectId`.

        An `ObjectId` is `bytes` too, so ask for it first.  A long inline chunk comes in pieces of at most 128 KiB,
        and their limits mean nothing.

        Raises:
            SplitstreamError: at an offset in the unpacked stream.
        """
        read_some, object_refs = self._body.read_some, self.object_refs
        while True:
            while self._left:
                if not (piece := read_some(min(self._left, PIECE))):
                    raise self._error(f"the stream ends {self._left} bytes before the end of its last inline chunk")
                self._left -= len(piece)
                yield piece
            index = self._next_chunk()
            if index is None:
                return
            if index != _INLINE:
                yield object_refs[index]

    def unpacked(self) -> Iterator[bytes]:
        """All that follows as it stands in the stream, for somebody who takes the chunks apart in another way.

        Raises:
            SplitstreamError: it cannot be unpacked.
        """
        while piece := self._body.read_some(PIECE):
            yield piece

    def bad_chunk(self, value: int, offset: int) -> SplitstreamError:
        """What to say of a chunk whose *value* is neither the index of an object nor the length of inline content."""
        reason = f"external reference {value} is out of range: there are {len(self.object_refs)} objects"
        if value < 0:
            reason = "an inline chunk of 2^63 bytes cannot be"
        return SplitstreamError(f"{reason}, in the unpacked stream", offset, self._name)

    def cut_short(self, left: int, offset: int) -> SplitstreamError:
        """What to say of a stream that ends *left* bytes before its inline content does, or with 0 in a header."""
        what = f"{left} bytes before the end of its last inline chunk" if left else "inside the header of a chunk"
        return SplitstreamError(f"the stream ends {what}, in the unpacked stream", offset, self._name)

    def cat(self, open_object: Callable[[ObjectId], Iterable[bytes]]) -> Iterator[bytes]:
        """The merged content that follows, in pieces; *open_object* gives the content of each object in turn.

        Raises:
            SplitstreamError: at an offset in the unpacked stream, after the content before it.
        """
        for chunk in self.chunks():
            if isinstance(chunk, ObjectId):
                yield from open_object(chunk)
            else:
                yield chunk

    def payload(self, open_object: Callable[[ObjectId], Iterable[bytes]], limit: int = 64 << 20) -> bytes:
        """The merged content that follows, whole: the JSON of a config or manifest stream.

        It is right for the streams of all generations, whether they have it inline or as an object.

        Raises:
            SplitstreamError: the stream is damaged, or its content is larger than *limit* bytes.
        """
        pieces: list[bytes] = []
        size = 0
        for piece in self.cat(open_object):
            size += len(piece)
            if size > limit:
                raise self._error(f"the content is larger than the {limit} bytes expected")
            pieces.append(piece)
        return b"".join(pieces)

    def read_inline_exact(self, size: int) -> bytes | None:
        """The next *size* bytes, which must be inline and in one chunk; None at the end of the stream.

        Nothing is allocated for bytes that are not there, but a small file can hold gigabytes of zeros: bound
        *size* if it comes from the content itself.

        Raises:
            SplitstreamError: at an offset in the unpacked stream.
        """
        if not self._left and size:
            index = self._next_chunk()
            if index is None:
                return None
            if index != _INLINE:
                raise self._error("there is an external reference where inline content should be", back=True)
        return self._take(size)

    def read_exact(self, actual: int, stored: int) -> bytes | ObjectId:
        """The content of a file that is padded to *stored* bytes: its first *actual* bytes, or its object.

        Afterwards the padding has been read too.  A size of 0 reads nothing.

        Raises:
            SplitstreamError: at an offset in the unpacked stream, which may not end here.
        """
        if not 0 <= actual <= stored:
            raise ValueError(f"{actual} bytes cannot be stored in {stored}")
        if not self._left and stored:
            index = self._next_chunk()
            if index is None:
                raise self._error(f"the stream ends where content of {stored} bytes should be")
            if index != _INLINE:
                self._skip_padding(stored - actual)
                return self.object_refs[index]
        content = self._take(actual)
        self._skip(stored - actual)
        return content

    # -- inside --------------------------------------------------------------------------------

    def _error(self, reason: str, *, back: bool = False) -> SplitstreamError:
        offset = self._body.offset - (_CHUNK.size if back else 0)
        return SplitstreamError(f"{reason}, in the unpacked stream", offset, self._name)

    def _next_chunk(self) -> int | None:
        """The index of an object, `_INLINE`, or None at the end."""
        raw = self._body.read(_CHUNK.size)
        if len(raw) != _CHUNK.size:
            if not raw:
                return None
            raise self._error("the stream ends inside the header of a chunk")
        value: int = _CHUNK.unpack(raw)[0]
        if 0 <= value < len(self.object_refs):
            return value
        if not _I64_MIN < value < 0:
            raise self.bad_chunk(value, self._body.offset - _CHUNK.size)
        self._left = -value
        return _INLINE

    def _take(self, size: int) -> bytes:
        self._require_left(size)
        content = self._body.read(size) if size else b""
        self._left -= len(content)
        if len(content) < size:
            raise self._error(f"the stream ends {self._left} bytes before the end of its last inline chunk")
        return content

    def _skip(self, size: int) -> None:
        self._require_left(size)
        while size:
            if not (piece := self._body.read_some(min(size, PIECE))):
                raise self._error(f"the stream ends {self._left} bytes before the end of its last inline chunk")
            self._left -= len(piece)
            size -= len(piece)

    def _skip_padding(self, size: int) -> None:
        """Skip what pads an object; it opens the next inline chunk."""
        if size:
            index = self._next_chunk()
            if index != _INLINE:
                what = "the stream ends" if index is None else "there is an external reference"
                raise self._error(f"{what} where padding of {size} bytes should be", back=index is not None)
            self._skip(size)

    def _require_left(self, size: int) -> None:
        if size > self._left:
            raise self._error(f"{size} bytes are needed, but the inline chunk has only {self._left} left")

    def _read_start(self, section: Section) -> bytes:
        """What the file has of *section*, and no more than the section."""
        within = Section(section.start, min(section.end, self._source.size))
        return read_section(self._source, within, "header", self._name)

    def _read_info(self, content_type: int | None) -> Info:
        section = self.header.info
        in_header = 16 if self.header.generation is Generation.MARCH else 0
        self._check_range(section, "info", in_header)
        # The rest of a longer info belongs to generations to come.
        raw = self._read_start(Section(section.start, min(section.end, section.start + INFO_SIZE)))
        info = unpack_info(raw, section.start, self._name)
        for what, at in RANGE_OFFSETS.items():
            self._check_range(getattr(info, what), what, section.start + at)
        if content_type is not None and info.content_type != content_type:
            found, expected = content_type_name(info.content_type), content_type_name(content_type)
            reason = f"the content is of type {found}, expected {expected}"
            raise SplitstreamError(reason, section.start + CONTENT_TYPE_OFFSET, self._name)
        return info

    def _check_range(self, section: Section, what: str, offset: int) -> None:
        if section.start > section.end:
            reason = f"the {what} section ends at {section.end}, before its start at {section.start}"
            raise SplitstreamError(reason, offset, self._name)
        # Where an empty section is does not matter, to composefs-rs neither.
        if section.size and section.end > self._source.size:
            reason = f"the {what} section ends at {section.end}, but the file at {self._source.size}"
            raise SplitstreamError(reason, offset, self._name)

    def _read_ids(self, section: Section, what: str) -> ObjectIds:
        width = self.header.algorithm.digest_size
        if section.size % width:
            reason = f"the {what} section has {section.size} bytes, which is no multiple of {width}"
            raise SplitstreamError(reason, section.start, self._name)
        if section.size > MAX_REFS:
            reason = f"the {what} section has {section.size} bytes, more than the {MAX_REFS} that are read"
            raise SplitstreamError(reason, section.start, self._name)
        return ObjectIds(read_section(self._source, section, what, self._name), self.header.algorithm)
