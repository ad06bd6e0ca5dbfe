"""Members back out of a stored layer: inline bytes and object ids in, one entry per member out.

Owns the walk over a splitstream's chunks and the rules that tie content to its member.  It does not own the
splitstream format, nor what a header means (`header`), nor what a path, a whiteout or a hard link means in
a tree.

Streams that composefs-rs stored are read whether or not they have the archive's trailer, and with or without
the padding behind the last member.  All input is untrusted; memory is bounded by the largest inline chunk and
`header.MAX_EXTENSION_DATA`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from zlib_ng import zlib_ng

from ... import _native
from ...digest import ObjectId
from ...errors import TarError
from .fields import Memo, byte_sum
from .header import BLOCK, GNU_MAGIC, INLINE_MAX, USTAR_MAGIC, EntryType, HeaderParser, Member
from .sparse import SparseContent, SparseForm

Buffer = bytes | bytearray | memoryview

NATIVE = _native.BACKEND == "native"
if NATIVE:
    from ..._native import _core

__all__ = ["EntryReader", "EntryType", "TarEntry", "read_batches", "read_entries"]

# Name, 24 bytes of mode, uid and gid, size, mtime, checksum, type, and the rest, which most members of a layer share.
_unpack = struct.Struct("100s24s12s12s8sB355s").unpack_from
_REST = BLOCK - 355
_MAX_SIZE = (1 << 63) - 1
_ZEROS = bytes(BLOCK)
_FILE, _HARDLINK, _SYMLINK, _DIRECTORY = b"0125"
_FILE_TYPE = EntryType.FILE
_ENDS = b"\0 "
_AT_A_TIME = 256
_TYPES = (EntryType.FILE, EntryType.HARDLINK, EntryType.SYMLINK, EntryType.DIRECTORY)
_PLAIN_TYPES = {
    _FILE: EntryType.FILE,
    _HARDLINK: EntryType.HARDLINK,
    _SYMLINK: EntryType.SYMLINK,
    _DIRECTORY: EntryType.DIRECTORY,
}


class TarEntry(NamedTuple):
    """One member of a layer, extension headers applied, paths not resolved: `..` and `.` may be in them."""

    path: bytes
    """Without slashes around it; empty for the root.  Split at slashes and ignore empty parts and ``.``."""
    type: EntryType
    mode: int
    """The permission bits, at most 0o7777."""
    uid: int
    gid: int
    size: int
    """Size of a file's content in bytes; 0 for other types."""
    mtime_ns: int
    """Since 1970, in nanoseconds; negative before.  ``divmod(mtime_ns, 10**9)`` gives what an inode holds."""
    rdev: int
    """Device number, as ``st_rdev`` on Linux; 0 unless it is a device."""
    link: bytes
    """A symlink's target verbatim, a hard link's in the form of *path*, else empty."""
    xattrs: tuple[tuple[bytes, bytes], ...]
    """Names and values, by name; of equal names the last in the archive."""
    content: bytes | ObjectId | SparseContent | None
    """A file's bytes if they are at most 64, the object that holds them if more, what the archive has of a sparse one;
    None for other types."""
    offset: int
    """Offset of the header in the archive, in bytes."""


def read_entries(chunks: Iterable[bytes | ObjectId]) -> Iterator[TarEntry]:
    """The members of the layer that *chunks* put together, in order.  Blocks as *chunks* does.

    Chunks are inline bytes, cut anywhere, and the objects that stand for content of files, as `ObjectId`.
    What follows the end of the archive is not looked at.

    Raises:
        TarError: the archive is damaged or refused, or content is stored in the wrong place.
    """
    for entries in read_batches(chunks, EntryReader()):
        yield from entries


def read_batches(chunks: Iterable[bytes | ObjectId], reader: EntryReader) -> Iterator[list[TarEntry]]:
    """What `read_entries` gives, in lists, read by *reader*, which is a fresh one."""
    chunks = iter(chunks)
    while not reader.ended:
        entries: list[TarEntry] = []
        batch, error = _batch(chunks)
        try:
            reader.feed(batch, entries)
        finally:
            yield entries  # what comes before the damage
        if error is not None and not reader.ended:
            raise error
        if not batch:
            reader.finish()
            return


def _batch(chunks: Iterator[bytes | ObjectId]) -> tuple[list[Buffer | ObjectId], Exception | None]:
    """The next few, and what kept more of them from coming."""
    batch: list[Buffer | ObjectId] = []
    try:
        batch += islice(chunks, _AT_A_TIME)
    except Exception as error:
        return batch, error
    return batch, None


_adler32 = zlib_ng.adler32
_entry = tuple.__new__  # at a third of the price of calling the class
_Chunks = Iterator[Buffer | ObjectId]
_SIZE, _CONTENT, _OFFSET = map(TarEntry._fields.index, ("size", "content", "offset"))


class EntryReader:
    """Reads the entries of a tar out of chunks that somebody brings.  Of no use after it raised.

    Between two chunks it holds back what is not enough to go on with, and knows what it waits for.
    """

    def __init__(self, parser: HeaderParser | None = None) -> None:
        # No limit of its own: nothing is allocated by a size, and a stream that is there should be readable.
        self._parser = parser or HeaderParser(_MAX_SIZE)
        self._rests = Memo(_rest, 1 << 10)
        self._offset = 0  # in the archive, of the first byte that is held or comes next
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._skip = 0  # data and padding to pass over; if so nothing is held
        self._padding = 0  # how many of them may be missing at the end
        # whose data comes (None: extension), size, offset, and form
        self._inside: tuple[Member | None, int, int, SparseForm | None] | None = None
        # the fields of a file whose content must come as an object; for that of a sparse one, its form
        self._waiting: list[Any] | None = None
        self._zero_block = False
        self.ended: bool = False
        """The archive's trailer has been read; what follows must not be given."""

    @property
    def difference(self) -> str:
        """Where and why composefs-rs 0.9.0 reads another member than this; empty if it does not so far."""
        return self._parser.difference

    def feed(self, chunks: Iterable[Buffer | ObjectId], entries: list[TarEntry]) -> bool:
        """Append what the next *chunks* complete to *entries*; False if there were none.

        This is the fastest way to entries: give it hundreds of chunks at a time, in a list.  What follows the end of
        the archive is not asked for.  Chunks may change after they have been taken.
        """
        if NATIVE and type(chunks) is list:
            self._feed_natively(chunks, entries)
            return bool(chunks)
        rest = iter(chunks)
        chunk = first = next(rest, None)
        while chunk is not None:
            if isinstance(chunk, ObjectId):
                entries.append(self._external(chunk))
                chunk = next(rest, None)
            else:
                chunk = self._inline(chunk if type(chunk) is bytes else bytes(chunk), entries, rest)
        return first is not None

    def _feed_natively(self, chunks: list[Buffer | ObjectId], entries: list[TarEntry]) -> None:
        index = 0
        while index < len(chunks) and not self.ended:
            if not (self._held or self._inside or self._waiting or self._parser.pending):
                index = self._members(chunks, index, entries)
                if index == len(chunks):
                    return
            chunk = chunks[index]
            index += 1
            if isinstance(chunk, ObjectId):
                entries.append(self._external(chunk))
            else:
                self._inline(chunk if type(chunk) is bytes else bytes(chunk), entries, iter(()))

    def _members(self, chunks: list[Buffer | ObjectId], index: int, entries: list[TarEntry]) -> int:
        """Read members that need no second look natively; returns the chunk to go on with."""
        before = index, self._skip
        index, self._skip, self._offset = _core.read_members(
            chunks, *before, self._offset, entries, ObjectId, _entry, TarEntry, _TYPES
        )
        if (index, self._skip) != before:
            self._zero_block = False
            self._padding = max(self._skip - (len(chunks[index]) if index < len(chunks) else 0), 0)
        return index

    def _external(self, content: ObjectId) -> TarEntry:
        fields = self._waiting
        if fields is None:
            raise TarError("an object stands where there is no content of a file larger than 64 bytes", self._offset)
        self._waiting = None
        form, size = fields[_CONTENT], fields[_SIZE]
        fields[_CONTENT] = content
        if form is not None:
            fields[_CONTENT], size = SparseContent(content, form), form.stored
        self._offset += size
        self._skip = self._padding = -size & 511
        return _entry(TarEntry, fields)

    def _inline(self, chunk: bytes, entries: list[TarEntry], rest: _Chunks) -> Buffer | ObjectId | None:
        """Read *chunk*, and what else of *rest* goes on like it; returns what comes next."""
        after = None
        if self._held:
            self._held.append(chunk)
            self._held_bytes += len(chunk)
            if self._held_bytes < (self._inside[1] if self._inside else BLOCK):
                return next(rest, None)
            chunk = b"".join(self._held)
        at = self._skip
        while not self.ended and self._waiting is None and after is None:
            if self._inside is not None:
                if at + self._inside[1] > len(chunk):
                    break
                at = self._data(chunk, at, entries)
            else:
                chunk, at, after = self._plain_members(chunk, at, entries, rest)
                if at + BLOCK > len(chunk) or self._waiting is not None:
                    break
                at = self._other_header(chunk[at : at + BLOCK], at, entries)
        self._hold(chunk, at, len(chunk))
        return None if self.ended else after or next(rest, None)

    def finish(self) -> None:
        """Trailer and final padding may be missing or cut short; all else must be complete."""
        if self._waiting is not None or self._inside is not None or self._skip > self._padding:
            raise TarError("the archive ends inside the data of a member", self._offset)
        if any(map(any, self._held)):
            raise TarError("the archive ends inside a header", self._offset)
        self._parser.check_end(self._offset)

    def _plain_members(
        self, data: bytes, at: int, entries: list[TarEntry], chunks: _Chunks
    ) -> tuple[bytes, int, Buffer | ObjectId | None]:
        """Read members that need no second look, from chunk to chunk, up to the first header that does.

        It accepts nothing that `HeaderParser` refuses, and gives the same answer; the rest is looked at again there.

        Returns:
            The chunk that was reached, the place in it, and one behind it that was taken and is none for this loop.
        """
        rests, (_, owners, times, sums) = self._rests, self._parser.memos
        first, base, end = at, self._offset, len(data)
        last = -1 if self._parser.pending else end - BLOCK
        after: Buffer | ObjectId | None = None
        while at <= last:
            name, owner, size_field, mtime, checksum, kind, rest = _unpack(data, at)
            digits = size_field[:11]
            try:
                # Sizes seldom come again: this is faster than a memo.
                size, (mode, uid, gid), mtime_ns = int(digits, 8), owners[owner], times[mtime]
                byte_sum, (link, prefix, rest_sum) = sums[checksum], rests[rest]
            except ValueError:
                break
            # The byte sum: see header.  So few bytes cannot reach what Adler-32 is modulo of.
            if (_adler32(data[at : at + _REST]) & 0xFFFF) - 1 + rest_sum != byte_sum or not name[0]:
                break
            if not digits.isdigit() or size_field[11] not in _ENDS or kind not in _PLAIN_TYPES:
                break
            path = (prefix + name.partition(b"\0")[0]).strip(b"/")
            offset, content = base + at, at + BLOCK
            if kind == _FILE and size > INLINE_MAX:
                fields = [path, _FILE_TYPE, mode, uid, gid, size, mtime_ns, 0, b"", (), None, offset]
                first, at = -1, content
                after = next(chunks, None) if at == end else None
                if not isinstance(after, ObjectId):
                    self._waiting = fields
                    break
                fields[_CONTENT] = after
                entries.append(_entry(TarEntry, fields))
                self._offset = base = base + end + size
                at, after = -size & 511, next(chunks, None)
                data = after if type(after) is bytes else b""
                last = (end := len(data)) - BLOCK
                after = None if data else after
                continue
            body = data[content : content + size] if kind == _FILE else None
            target = b"" if kind == _FILE else _plain_link(kind, link)
            if (size and kind != _FILE) or content + size > end or target is None:
                break
            found = (path, _PLAIN_TYPES[kind], mode, uid, gid, size, mtime_ns, 0, target, (), body, offset)
            entries.append(_entry(TarEntry, found))
            at = content + BLOCK if size else content
        if at != first:
            self._zero_block = False
            self._padding = max(at - end, 0)
        return data, at, after

    def _other_header(self, header: bytes, at: int, entries: list[TarEntry]) -> int:
        offset = self._offset + at
        at += BLOCK
        if header == _ZEROS:
            if self._zero_block:
                self._parser.check_end(offset)
                self.ended = True
            self._zero_block = True
            return at
        self._zero_block = False
        size, member, collect, sparse = self._parser.parse(header, offset)
        if collect or (member and member.type is EntryType.FILE):
            if size > INLINE_MAX and member:
                self._waiting = [*member, sparse, offset]
            else:
                self._inside = member, size, offset, sparse
            return at
        if member:
            entries.append(TarEntry(*member, None, offset))
        self._padding = -size & 511
        return at + size + self._padding

    def _data(self, data: bytes, at: int, entries: list[TarEntry]) -> int:
        assert self._inside is not None
        (member, size, offset, sparse), self._inside = self._inside, None
        content = data[at : at + size]
        if member is None:
            self._parser.extension(content)
        else:
            entries.append(TarEntry(*member, SparseContent(content, sparse) if sparse else content, offset))
        self._padding = -size & 511
        return at + size + self._padding

    def _hold(self, data: bytes, at: int, end: int) -> None:
        """Keep what is left of *data*, which is of no use before more comes."""
        if self._waiting is not None and at < end:
            raise TarError(f"the content of a file of {self._waiting[_SIZE]} bytes is inline", self._waiting[_OFFSET])
        self._skip = max(at - end, 0)
        self._offset += min(at, end)
        self._held = [data[at:]] if at < end else []
        self._held_bytes = max(end - at, 0)


def _plain_link(kind: int, link: bytes) -> bytes | None:
    """The target of a link, as the entry has it; None if it must have one and has not."""
    if kind == _DIRECTORY:
        return b""
    return (link.strip(b"/") if kind == _HARDLINK else link) if link else None


def _rest(rest: bytes) -> tuple[bytes, bytes, int]:
    """Link, prefix with its slash, and byte sum of what follows the type in a header; ValueError for odd dialects."""
    magic = rest[257 - _REST : 265 - _REST]
    if magic not in (USTAR_MAGIC, GNU_MAGIC):
        raise ValueError("neither ustar nor GNU")
    prefix = rest[345 - _REST : 500 - _REST].partition(b"\0")[0] if magic == USTAR_MAGIC else b""
    return rest[:100].partition(b"\0")[0], prefix + b"/" if prefix else b"", byte_sum(rest)
