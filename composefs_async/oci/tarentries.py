"""Members back out of a stored layer: inline bytes and object ids in, one entry per member out.

Owns the walk over a splitstream's chunks and the rules that tie content to its member.  It does not own the
splitstream format, nor what a header means (`tarheader`), nor what a path, a whiteout or a hard link means in
a tree.

Streams that composefs-rs stored are read whether or not they have the archive's trailer, and with or without
the padding behind the last member.  All input is untrusted; memory is bounded by the largest inline chunk and
`tarheader.MAX_EXTENSION_DATA`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from zlib_ng import zlib_ng

from ..digest import ObjectId
from ..errors import TarError
from .tarheader import BLOCK, INLINE_MAX, USTAR_MAGIC, EntryType, HeaderParser, Member

__all__ = ["EntryReader", "EntryType", "TarEntry", "read_entries"]

# Name, 24 bytes of mode, uid and gid, size, mtime, checksum, type, link, magic and version, and the first byte
# of what is the prefix in ustar.
_unpack = struct.Struct("100s24s12s12s8sB100s8s80xB").unpack_from
_MAX_SIZE = (1 << 63) - 1
_ZEROS = bytes(BLOCK)
_FILE, _HARDLINK, _SYMLINK, _DIRECTORY = b"0125"
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
    """Of a file's content, in bytes.  Other types may claim data too, which is passed over."""
    mtime_ns: int
    """Since 1970, in nanoseconds; negative before.  ``divmod(mtime_ns, 10**9)`` gives what an inode holds."""
    rdev: int
    """As ``st_rdev`` on Linux; 0 unless it is a device."""
    link: bytes
    """A symlink's target verbatim, a hard link's in the form of *path*, else empty."""
    xattrs: tuple[tuple[bytes, bytes], ...]
    """Names and values, by name; of equal names the last in the archive."""
    content: bytes | ObjectId | None
    """A file's bytes if they are at most 64, the object that holds them if more; None for other types."""
    offset: int
    """Of the header in the archive, in bytes."""


def read_entries(chunks: Iterable[bytes | ObjectId]) -> Iterator[TarEntry]:
    """The members of the layer that *chunks* put together, in order.  Blocks as *chunks* does.

    Chunks are inline bytes, cut anywhere, and the objects that stand for content of files, as `ObjectId`.
    What follows the end of the archive is not asked for.

    Raises:
        TarError: the archive is damaged or refused, or content is stored in the wrong place.
    """
    reader = EntryReader()
    for chunk in chunks:
        if isinstance(chunk, ObjectId):
            yield reader.external(chunk)
        else:
            yield from reader.inline(chunk)
        if reader.ended:
            return
    reader.finish()


_Fields = tuple[bytes, EntryType, int, int, int, int, int, int, bytes, tuple[tuple[bytes, bytes], ...]]
_entry, _adler32 = TarEntry._make, zlib_ng.adler32


class EntryReader:
    """The same, driven by whoever has the chunks.  Of no use after it raised.

    Between two chunks it holds back what is not enough to go on with, and knows what it waits for.
    """

    def __init__(self) -> None:
        # No limit of its own: nothing is allocated by a size, and a stream that is there should be readable.
        self._parser = HeaderParser(_MAX_SIZE)
        self._offset = 0  # in the archive, of the first byte that is held or comes next
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._skip = 0  # data and padding to pass over; if so nothing is held
        self._padding = 0  # how many of them may be missing at the end
        self._inside: tuple[Member | None, int, int] | None = None  # whose data comes (None: extension), size, offset
        self._waiting: tuple[_Fields, int] | None = None  # a file whose content must come as an object, offset
        self._zero_block = False
        self.ended = False
        """The archive's trailer has been read; what follows must not be given."""

    def inline(self, chunk: bytes) -> list[TarEntry]:
        """What the next inline bytes complete."""
        entries: list[TarEntry] = []
        if self._held:
            self._held.append(chunk)
            self._held_bytes += len(chunk)
            if self._held_bytes < (self._inside[1] if self._inside else BLOCK):
                return entries
            chunk = b"".join(self._held)
        at, end = self._skip, len(chunk)
        while not self.ended and self._waiting is None:
            if self._inside is not None:
                if at + self._inside[1] > end:
                    break
                at = self._data(chunk, at, entries)
            else:
                at = self._plain_members(chunk, at, entries)
                if at + BLOCK > end or self._waiting is not None:
                    break
                at = self._other_header(chunk[at : at + BLOCK], at, entries)
        self._hold(chunk, at, end)
        return entries

    def external(self, content: ObjectId) -> TarEntry:
        """The file whose content is the object that comes next."""
        if self._waiting is None:
            raise TarError("an object stands where there is no content of a file larger than 64 bytes", self._offset)
        member, offset = self._waiting
        self._waiting = None
        self._offset += member[5]
        self._skip = self._padding = -member[5] & 511
        return _entry((*member, content, offset))

    def finish(self) -> None:
        """Trailer and final padding may be missing or cut short; all else must be complete."""
        if self._waiting is not None or self._inside is not None or self._skip > self._padding:
            raise TarError("the archive ends inside the data of a member", self._offset)
        if any(map(any, self._held)):
            raise TarError("the archive ends inside a header", self._offset)
        self._parser.check_end(self._offset)

    def _plain_members(self, data: bytes, at: int, entries: list[TarEntry]) -> int:
        """Read members that need no second look, up to the first header that does.

        This loop takes most of the reader's time.  It must accept nothing that `HeaderParser` refuses, and
        give the same answer; what it does not accept is looked at again there.
        """
        sizes, owners, times, sums = self._parser.memos
        first, end, last = at, len(data), -1 if self._parser.pending else len(data) - BLOCK
        try:
            while at <= last:
                name, owner, size_field, mtime, checksum, kind, link, magic, prefix = _unpack(data, at)
                half, content = at + 256, at + BLOCK
                # The byte sum: see tarheader.
                low, high = _adler32(data[at:half]), _adler32(data[half:content])
                if (low & 0xFFFF) + (high & 0xFFFF) - 2 != sums[checksum] or not name[0]:
                    break
                (mode, uid, gid), size, mtime_ns = owners[owner], sizes[size_field], times[mtime]
                if mode > 0o7777 or kind not in _PLAIN_TYPES:
                    break
                path = name.partition(b"\0")[0]
                if prefix and magic == USTAR_MAGIC:
                    path = data[at + 345 : at + 500].partition(b"\0")[0] + b"/" + path
                path, target, body = path.strip(b"/"), b"", None
                if kind == _FILE:
                    if size > INLINE_MAX:
                        member = (path, EntryType.FILE, mode, uid, gid, size, mtime_ns, 0, b"", ())
                        self._waiting = member, self._offset + at
                        at = content
                        break
                    if content + size > end:
                        break
                    body = data[content : content + size]
                elif size:
                    break
                elif kind != _DIRECTORY:
                    if not (target := link.partition(b"\0")[0]):
                        break
                    target = target if kind == _SYMLINK else target.strip(b"/")
                found = (
                    path,
                    _PLAIN_TYPES[kind],
                    mode,
                    uid,
                    gid,
                    size,
                    mtime_ns,
                    0,
                    target,
                    (),
                    body,
                    self._offset + at,
                )
                entries.append(_entry(found))
                at = content + BLOCK if size else content
        except ValueError:  # a memo refuses the field
            pass
        if at != first:
            self._zero_block = False
            self._padding = max(at - end, 0)
        return at

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
        size, member, collect = self._parser.parse(header, offset)
        if collect or (member and member.type is EntryType.FILE):
            if size > INLINE_MAX and member:
                self._waiting = member, offset
            else:
                self._inside = member, size, offset
            return at
        if member:
            entries.append(_entry((*member, None, offset)))
        self._padding = -size & 511
        return at + size + self._padding

    def _data(self, data: bytes, at: int, entries: list[TarEntry]) -> int:
        assert self._inside is not None
        (member, size, offset), self._inside = self._inside, None
        if member is None:
            self._parser.extension(data[at : at + size])
        else:
            entries.append(_entry((*member, data[at : at + size], offset)))
        self._padding = -size & 511
        return at + size + self._padding

    def _hold(self, data: bytes, at: int, end: int) -> None:
        """Keep what is left of *data*, which is of no use before more comes."""
        if self._waiting is not None and at < end:
            raise TarError(f"the content of a file of {self._waiting[0][5]} bytes is inline", self._waiting[1])
        self._skip = max(at - end, 0)
        self._offset += min(at, end)
        self._held = [data[at:]] if at < end else []
        self._held_bytes = max(end - at, 0)
