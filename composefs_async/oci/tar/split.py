"""Cuts a tar archive into what stays in a splitstream and what becomes objects; bytes in, positions out.

Owns the walk over an archive of any size in pieces of any size: which bytes are a file's content, and that
every byte up to the end of input comes out exactly once, in order.  It copies nothing but headers, opens
nothing and waits for nothing.  It does not own what a header means (`header`) or the way back from a
stored stream to members (`members`).

An external range is the whole content of a regular file of more than 64 bytes; everything else, headers,
small files, padding, trailer and whatever follows it, is inline.  An archive is refused for whatever
`members.read_entries` would refuse later, so that no stream is published that cannot be read.

Two ways to drive it: `TarSplitter.feed` takes pieces of any size and answers with copies, for convenience;
`TarSplitter.split` works on the caller's buffer and answers with positions in it, in 3 µs a member, natively 0.7::

    splitter = TarSplitter()
    tail = b""
    for chunk in chunks:
        data = memoryview(tail + chunk)
        found = splitter.split(data)
        for kind, start, end in found.items: ...
        tail = bytes(data[found.consumed :])
    found = splitter.split(memoryview(tail), final=True)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from zlib_ng import zlib_ng

from ... import _native
from ...errors import TarError
from .header import BLOCK, GNU_MAGIC, INLINE_MAX, MAX_FILE_SIZE, USTAR_MAGIC, EntryType, HeaderParser
from .sparse import MAX_MAP, SparseForm

__all__ = [
    "EXTERNAL",
    "INLINE",
    "LARGE_BEGIN",
    "LARGE_END",
    "LARGE_PIECE",
    "PIECE",
    "Event",
    "Split",
    "TarSplitter",
]

PIECE: Final = 512 * 1024
"""Pieces of a large file begin at multiples of this, in bytes: 128 blocks of fs-verity."""

INLINE: Final = 0
"""The range stays in the splitstream.  Two inline ranges never follow each other within one `Split`."""
EXTERNAL: Final = 1
"""The range is the whole content of one file."""
LARGE_BEGIN: Final = 2
"""A file larger than the carry limit begins; start is 0 and end its size in bytes."""
LARGE_PIECE: Final = 3
"""The range continues the large file.  It begins at a multiple of the piece size, counted from the file's
start, and ends at one or with the file; it may be several pieces long."""
LARGE_END: Final = 4
"""The large file is complete; start is 0 and end its size in bytes."""

NATIVE: Final = _native.BACKEND == "native"
if NATIVE:
    from ..._native import _core

# First byte of the name, 24 bytes of mode, uid and gid, size, mtime, checksum, type, first byte of the link, magic.
_unpack = struct.Struct("B99x24s12s12s8sBB99x8s").unpack_from
_MAGICS = (USTAR_MAGIC, GNU_MAGIC)
_ZEROS = bytes(BLOCK)
_FILE, _HARDLINK, _SYMLINK, _DIRECTORY = b"0125"


class Split(NamedTuple):
    """What became of a view."""

    consumed: int
    """Bytes of the view that *items* account for.  The rest, less than the larger of carry limit and piece
    size, plus 512 bytes, must stand at the front of the next view."""
    items: list[tuple[int, int, int]]
    """Kind, start and end, in stream order; positions count from the start of the view."""


class Event(NamedTuple):
    """What `TarSplitter.feed` found; *data* is a copy."""

    kind: int
    data: bytes
    size: int
    """Size of the data, or of the whole file for LARGE_BEGIN and LARGE_END; in bytes."""


class TarSplitter:
    """Splits one archive.  Not for two threads at a time; of no use after it raised.

    Memory: a copy of the extension headers before a member, at most `header.MAX_EXTENSION_DATA`, or of the map of a
    sparse one, at most `sparse.MAX_MAP`.

    Args:
        carry_limit: files up to this size in bytes come as one contiguous range.
        piece_size: of a larger file, a multiple of 4096.
        max_file_size: what a single member may claim, in bytes.
        name_max: of a path component, in bytes, 255 or more.  None accepts any length, as composefs-rs does,
            although Linux can look up no name of more than 255 bytes.
        parser: says what headers mean; a fresh one, with limits of its own.
    """

    def __init__(
        self,
        *,
        carry_limit: int = PIECE,
        piece_size: int = PIECE,
        max_file_size: int = MAX_FILE_SIZE,
        name_max: int | None = None,
        parser: HeaderParser | None = None,
    ) -> None:
        if piece_size <= 0 or piece_size % 4096 or carry_limit < INLINE_MAX:
            raise ValueError(f"carry limit {carry_limit} and piece size {piece_size} do not fit together")
        if name_max is not None and name_max < 255:  # the fast loop does not look at names that short
            raise ValueError(f"a limit of {name_max} bytes for names is too low")
        self._carry_limit, self._piece_size = carry_limit, piece_size
        self._parser = parser or HeaderParser(max_file_size, name_max)
        self._items: list[tuple[int, int, int]] = []
        self._inline = 0  # where the inline range begins that has not been put into the items yet
        self._offset = 0
        self._step: Callable[[memoryview, int, int], int] = self._headers
        self._stalled = False
        self._zero_block = False
        self._left = 0  # bytes to pass or wait for in this state, padding included if it is inline
        self._padding = 0  # how many of them, or of those after them, an archive may lack at its end
        self._size = 0
        self._header_offset = 0
        self._collected = bytearray()
        self._sparse: SparseForm | None = None  # of the file that comes, as long as its map has not been seen
        self._tail = bytearray()
        self._finished = False

    @property
    def difference(self) -> str:
        """Where and why composefs-rs 0.9.0 reads another member than this; empty if it does not so far."""
        return self._parser.difference

    @property
    def offset(self) -> int:
        """Bytes of the archive consumed so far."""
        return self._offset

    @property
    def wanted(self) -> int:
        """How long the next view must be at least, in bytes, for `split` to consume any of it."""
        if self._step == self._headers:
            return BLOCK
        if self._step == self._file:
            return self._left
        return min(self._left, self._piece_size) if self._step == self._large else 1

    def split(self, view: memoryview, final: bool = False) -> Split:
        """Account for as much of *view* as possible.  Blocks for computation only.

        Args:
            view: contiguous bytes that follow those consumed so far.
            final: the archive ends with *view*; everything is consumed.

        Raises:
            TarError: the archive is damaged or refused; its offset is that of the header concerned.
        """
        if self._finished:
            raise ValueError("the archive has been split to its end")
        self._items, self._inline, self._stalled = [], 0, False
        at, end = 0, len(view)
        while not self._stalled:
            at = self._step(view, at, end)
        if final:
            self._check_end(view, at, end)
            self._finished, at = True, end
        if self._inline < at:
            self._items.append((INLINE, self._inline, at))
        self._offset += at
        return Split(at, self._items)

    def feed(self, piece: bytes | bytearray | memoryview, final: bool = False) -> list[Event]:
        """Take the next *piece*, of any size, and return what became complete.  Copies twice.

        The *data* of all events, put together, is the archive.

        Raises:
            TarError: as `split`.
        """
        self._tail += piece
        if len(self._tail) < self.wanted and not final:
            return []
        with memoryview(self._tail) as view:
            consumed, items = self.split(view, final)
            events = [
                Event(kind, b"" if kind in (LARGE_BEGIN, LARGE_END) else bytes(view[start:end]), end - start)
                for kind, start, end in items
            ]
        del self._tail[:consumed]
        return events

    # -- states: each takes the view from a position and returns the next position ------------------

    def _headers(self, view: memoryview, at: int, end: int) -> int:
        at = self._plain_members(view, at, end)
        if self._step != self._headers:
            return at
        if end - at < BLOCK:
            self._stalled = True
            return at
        return self._other_header(bytes(view[at : at + BLOCK]), at)

    def _plain_members(self, view: memoryview, at: int, end: int) -> int:
        """Pass members that need no second look, up to the first header that does.

        This takes most of the splitter's time.  It must accept nothing that `HeaderParser` refuses; what it does
        not accept is looked at again there, so it need not know why.
        """
        if self._parser.pending:
            return at
        first = at
        if NATIVE:
            at, self._inline = _core.split_members(view, at, self._inline, self._carry_limit, self._items)
        else:
            at = self._plain_members_python(view, at, end)
        if at != first:
            self._zero_block = False
        return self._pass_padding(at, end)

    def _plain_members_python(self, view: memoryview, at: int, end: int) -> int:
        sizes, owners, times, sums = self._parser.memos
        adler32, append, unpack, limit = zlib_ng.adler32, self._items.append, _unpack, self._carry_limit
        inline, last = self._inline, end - BLOCK
        try:
            while at <= last:
                name, owner, size_field, mtime, checksum, kind, link, magic = unpack(view, at)
                half, content = at + 256, at + BLOCK
                # The byte sum: see header.
                low, high = adler32(view[at:half]), adler32(view[half:content])
                if (low & 0xFFFF) + (high & 0xFFFF) - 2 != sums[checksum] or magic not in _MAGICS or not name:
                    break
                size, _, _ = sizes[size_field], times[mtime], owners[owner]
                if kind == _FILE and size > INLINE_MAX:
                    stop = content + size
                    if stop > end or size > limit:
                        break
                    append((INLINE, inline, content))
                    append((EXTERNAL, content, stop))
                    inline = stop
                    at = stop + (-size & 511)
                elif not size and (kind in (_FILE, _DIRECTORY) or (link and kind in (_SYMLINK, _HARDLINK))):
                    at = content
                elif kind == _FILE and content + BLOCK <= end:
                    at = content + BLOCK
                else:
                    break
        except ValueError:  # a memo refuses the field
            pass
        self._inline = inline
        return at

    def _other_header(self, header: bytes, at: int) -> int:
        offset = self._header_offset = self._offset + at
        at += BLOCK
        if header == _ZEROS:
            if self._zero_block:
                self._parser.check_end(offset)
                self._step = self._rest
            self._zero_block = True
            return at
        self._zero_block = False
        try:
            size, member, collect, sparse = self._parser.parse(header, offset)
        except TarError as error:
            if offset or header[257:262] == b"ustar":
                raise
            raise TarError(f"not a tar archive ({error.reason})", 0) from None
        self._sparse = sparse if sparse and sparse.map is None else None
        self._padding = -size & 511
        if member and member.type is EntryType.FILE and size > INLINE_MAX:
            return self._begin_file(size, at)
        self._left = size if collect else size + self._padding
        self._step = self._extension if collect else self._data
        return at

    def _begin_file(self, size: int, at: int) -> int:
        self._items.append((INLINE, self._inline, at))
        self._inline = at
        self._size = self._left = size
        self._step = self._file
        if size > self._carry_limit:
            self._items.append((LARGE_BEGIN, 0, size))
            self._step = self._large
        return at

    def _file(self, view: memoryview, at: int, end: int) -> int:
        stop = at + self._left
        if stop > end:
            self._stalled = True
            return at
        self._items.append((EXTERNAL, at, stop))
        if self._sparse is not None:
            self._check_map(view[at:stop])
        return self._end_file(stop, end)

    def _large(self, view: memoryview, at: int, end: int) -> int:
        there = end - at
        taken = self._left if there >= self._left else there - there % self._piece_size
        if not taken:
            self._stalled = True
            return at
        self._items.append((LARGE_PIECE, at, at + taken))
        if self._sparse is not None:
            self._check_map(view[at : at + taken])
        at = self._inline = at + taken
        self._left -= taken
        if self._left:
            return at
        self._items.append((LARGE_END, 0, self._size))
        return self._end_file(at, end)

    def _check_map(self, data: memoryview) -> None:
        """Look at the map before the data of a sparse member as soon as all of it is here."""
        assert self._sparse is not None
        self._collected += data[: MAX_MAP - len(self._collected)]
        try:
            if self._sparse.segments(bytes(self._collected)) is None:
                return
        except ValueError as error:
            raise TarError(str(error), self._header_offset) from None
        self._collected.clear()
        self._sparse = None

    def _end_file(self, stop: int, end: int) -> int:
        self._inline = stop
        self._step = self._headers
        return self._pass_padding(stop + self._padding, end)

    def _pass_padding(self, at: int, end: int) -> int:
        if at <= end:
            return at
        self._left = self._padding = at - end
        self._step = self._data
        return end

    def _data(self, view: memoryview, at: int, end: int) -> int:
        """Inline data that nobody looks at, and padding."""
        taken = min(self._left, end - at)
        self._left -= taken
        if self._left:
            self._stalled = True
        else:
            self._step = self._headers
        return at + taken

    def _extension(self, view: memoryview, at: int, end: int) -> int:
        taken = min(self._left, end - at)
        self._collected += view[at : at + taken]
        self._left -= taken
        if self._left:
            self._stalled = True
        else:
            self._parser.extension(bytes(self._collected))
            self._collected.clear()
            self._left = self._padding
            self._step = self._data
        return at + taken

    def _rest(self, view: memoryview, at: int, end: int) -> int:
        """Behind the end of the archive every byte is kept, whatever it is."""
        self._stalled = True
        return end

    def _check_end(self, view: memoryview, at: int, end: int) -> None:
        """Trailer and final padding may be missing or cut short; all else must be complete."""
        if self._step == self._rest:
            return
        offset = self._offset + at
        if self._step == self._headers:
            if any(view[at:end]):
                raise TarError("the archive ends inside a header", offset)
        elif self._step != self._data or self._left > self._padding:
            raise TarError("the archive ends inside the data of a member", self._header_offset)
        self._parser.check_end(offset)
