"""What a tar header says: numbers, names, extension headers before it, and everything that is refused.

Owns the meaning of a header of 512 bytes together with the extension headers before it, for the splitter and for the
reader alike: what one accepts the other reads.  It does not own single fields (`fields`), the records of PAX (`pax`),
where headers are (`split`, `members`), nor what a path or a whiteout means in a tree.

Formats: V7, ustar, GNU (long names, base-256 numbers) and PAX, after POSIX pax(1), the GNU tar manual
"Basic Tar Format" and tar(5) of libarchive.  Where a header contradicts itself it means what it means to GNU tar,
bsdtar, and Go's archive/tar; `HeaderParser.difference` tells where composefs-rs 0.9.0 reads another member.  Sparse
members of the old GNU form are refused.  All input is untrusted.
"""

from __future__ import annotations

import enum
import stat
from typing import NamedTuple, NoReturn

from ...errors import TarError
from .fields import FieldMemos, byte_sum, device, field_memos, signed_excess, text
from .pax import PaxRecords
from .sparse import SparseForm

__all__ = [
    "BLOCK",
    "GNU_MAGIC",
    "INLINE_MAX",
    "MAX_EXTENSION_DATA",
    "MAX_FILE_SIZE",
    "USTAR_MAGIC",
    "EntryType",
    "Header",
    "HeaderParser",
    "Member",
]

BLOCK = 512
INLINE_MAX = 64
"""A regular file up to this size stays inside the splitstream (INLINE_CONTENT_MAX_V0 of composefs-rs)."""
MAX_EXTENSION_DATA = 1 << 20
"""Size of all extension headers before one member together, in bytes.  One of each kind is allowed, so there are
three at most."""
MAX_FILE_SIZE = 1 << 40
"""The default for the largest member.  A claim of this size alone makes nobody allocate anything here."""

_TARGET_MAX = 4095  # of a symlink: PATH_MAX of linux/limits.h without the NUL
_WHITEOUT = b".wh."

USTAR_MAGIC, GNU_MAGIC = b"ustar\x0000", b"ustar  \x00"
"""What nearly every header has, version included.  The fast loops leave all others to `HeaderParser`."""
_USTAR, _GNU = USTAR_MAGIC[:6], GNU_MAGIC[:6]


class EntryType(enum.IntEnum):
    """What a member is; the value is its file type in ``st_mode``, 0 for a hard link."""

    FILE = stat.S_IFREG
    DIRECTORY = stat.S_IFDIR
    SYMLINK = stat.S_IFLNK
    HARDLINK = 0
    CHARACTER_DEVICE = stat.S_IFCHR
    BLOCK_DEVICE = stat.S_IFBLK
    FIFO = stat.S_IFIFO


_TYPES = {
    b"0": EntryType.FILE,
    b"\0": EntryType.FILE,
    b"7": EntryType.FILE,
    b"1": EntryType.HARDLINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHARACTER_DEVICE,
    b"4": EntryType.BLOCK_DEVICE,
    b"5": EntryType.DIRECTORY,
    b"6": EntryType.FIFO,
}
_DEVICES = (EntryType.CHARACTER_DEVICE, EntryType.BLOCK_DEVICE)
_EXTENSION_NAMES = {b"x": "PAX header", b"L": "GNU long name", b"K": "GNU long link"}


class Member(NamedTuple):
    """A member's metadata, with the extension headers before it applied."""

    path: bytes
    """Without slashes around it; empty for the root."""
    type: EntryType
    mode: int
    """The permission bits, at most 0o7777."""
    uid: int
    gid: int
    size: int
    """Size of a file in bytes: of the data behind the header, unless it is a sparse one.  0 for other types."""
    mtime_ns: int
    """Since 1970, in nanoseconds; negative before."""
    rdev: int
    """Device number, as ``st_rdev`` on Linux; 0 unless it is a device."""
    link: bytes
    """A symlink's target verbatim, a hard link's without slashes around it, else empty."""
    xattrs: tuple[tuple[bytes, bytes], ...]
    """Names and values, by name."""


class Header(NamedTuple):
    """What follows a header that is no zero block: *size* bytes of data and their padding."""

    size: int
    member: Member | None
    """None for an extension header or a global header."""
    collect: bool
    """The data is wanted by `HeaderParser.extension`."""
    sparse: SparseForm | None = None
    """How the data of a sparse file become the file; None for all others."""


class HeaderParser:
    """Understands headers one after another and keeps extension headers until their member comes.

    A global header (``g``) is passed over and never applied; extension headers before it stay in force.

    Args:
        max_size: of a member's data, in bytes.
        name_max: of a path component, in bytes.  None accepts any length, as composefs-rs does; 255 is what
            Linux can look up.
    """

    def __init__(self, max_size: int = MAX_FILE_SIZE, name_max: int | None = None) -> None:
        self._max_size, self._name_max = max_size, name_max
        self.memos: FieldMemos = field_memos()
        self._kind = b""
        self._offset = 0
        self._pax: PaxRecords | None = None
        self._names: dict[bytes, bytes] = {}
        self._bytes = 0
        self.pending: bool = False
        """Extension headers wait for their member."""
        self.difference: str = ""
        """Where and why composefs-rs 0.9.0 first reads another member than this parser; empty if it never does."""

    def parse(self, header: bytes, offset: int) -> Header:
        """The meaning of a *header* of 512 bytes, found at *offset* of the archive.

        Raises:
            TarError: it is damaged, or describes what cannot be stored.
        """
        try:
            return self._parse(header, offset)
        except TarError:
            raise
        except ValueError as error:
            raise TarError(_reason(error), offset) from None

    def extension(self, data: bytes) -> None:
        """Takes the data of the header for which `parse` said *collect*.

        Raises:
            TarError: it is malformed; with the offset of its header.
        """
        try:
            if self._kind == b"x":
                self._pax = PaxRecords(data)
            else:
                self._names[self._kind] = text(data)
        except ValueError as error:
            self._refuse_extension(_reason(error))

    def _refuse_extension(self, reason: str) -> NoReturn:
        raise TarError(reason, self._offset) from None

    def check_end(self, offset: int) -> None:
        """Raises TarError if the archive must not end here, because a member is owed."""
        if self.pending:
            raise TarError("the archive ends after an extension header", offset)

    def _parse(self, header: bytes, offset: int) -> Header:
        if not self._is_sound(header, byte_sum(header) - self.memos.sums[header[148:156]]):
            raise ValueError("the header checksum is wrong")
        kind = header[156:157]
        size = self.memos.sizes[header[124:136]]
        if kind == b"g":
            return Header(self._check_size(size), None, False)
        if kind in _EXTENSION_NAMES:
            return self._begin_extension(kind, size, offset)
        if kind == b"S":
            raise ValueError("sparse members of the old GNU form are not supported")
        if kind not in _TYPES:
            raise ValueError(f"unsupported member type {kind!r}")
        member, size, sparse = self._member(header, kind, size, offset)
        self._pax, self._names, self._bytes = None, {}, 0
        self.pending = False
        return Header(size, member, False, sparse)

    def _begin_extension(self, kind: bytes, size: int, offset: int) -> Header:
        if kind in self._names or (kind == b"x" and self._pax is not None):
            raise ValueError(f"a second {_EXTENSION_NAMES[kind]} before one member")
        self._bytes += size
        if self._bytes > MAX_EXTENSION_DATA:
            raise ValueError(f"extension headers of {self._bytes} bytes, more than {MAX_EXTENSION_DATA}")
        self._kind, self._offset = kind, offset
        self.pending = True
        return Header(size, None, True)

    def _member(self, header: bytes, flag: bytes, size: int, offset: int) -> tuple[Member, int, SparseForm | None]:
        pax, names = self._pax, self._names
        path = names.get(b"L") or text(header[:100])
        if self._has_prefix(header) and not names.get(b"L"):
            path = text(header[345:500]) + b"/" + path
        link = names.get(b"K") or text(header[157:257])
        mode, uid, gid = self.memos.owners[header[100:124]]
        mtime_ns = self.memos.times[header[136:148]]
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        sparse = None
        if pax:
            path, link = (pax.sparse and pax.sparse.name) or pax.path or path, pax.link or link
            size = size if pax.size is None else pax.size
            uid = uid if pax.uid is None else pax.uid
            gid = gid if pax.gid is None else pax.gid
            mtime_ns = mtime_ns if pax.mtime_ns is None else pax.mtime_ns
            xattrs = tuple(sorted(pax.xattrs.items()))
        kind = self._type_of(flag, header, path)
        self._note_difference(header, flag, kind, size, offset)
        size = self._data_size(size, kind)
        if pax and pax.sparse and (sparse := pax.sparse.form(size)) and kind is not EntryType.FILE:
            raise ValueError("a sparse member that is no file")
        member = Member(
            self._checked_path(path),
            kind,
            mode,
            uid,
            gid,
            self._check_size(sparse.size) if sparse else size,
            mtime_ns,
            device(header) if kind in _DEVICES and header[257:263] in (_USTAR, _GNU) else 0,
            self._checked_link(link, kind),
            xattrs,
        )
        return member, size, sparse

    # What `as_composefs_rs` decides otherwise.

    def _is_sound(self, header: bytes, excess: int) -> bool:
        """Whether a sum of bytes that is by *excess* larger than the checksum is that of the header."""
        return not excess or excess == signed_excess(header)

    def _has_prefix(self, header: bytes) -> bool:
        return header[257:263] == _USTAR and header[345] != 0

    def _flag_type(self, flag: bytes) -> EntryType:
        return _TYPES[flag]

    def _type_of(self, flag: bytes, header: bytes, path: bytes) -> EntryType:
        """What *flag* means; before there was one for directories, they had a slash behind their names."""
        kind, old = _TYPES[flag], flag == b"\0" or header[257:263] not in (_USTAR, _GNU)
        return EntryType.DIRECTORY if kind is EntryType.FILE and old and path.endswith(b"/") else kind

    def _data_size(self, size: int, kind: EntryType) -> int:
        """How much stands behind the header of a member that says *size*."""
        return self._check_size(size) if kind is EntryType.FILE else 0

    def _note_difference(self, header: bytes, flag: bytes, kind: EntryType, size: int, offset: int) -> None:
        """Remember if composefs-rs 0.9.0 takes this member for another one, and does not refuse it."""
        reason = ""
        if kind is not _TYPES[flag]:
            reason = "an old directory, marked by a slash behind its name, is a file to composefs-rs 0.9.0"
        elif size and kind is not EntryType.FILE:
            reason = f"composefs-rs 0.9.0 passes over {size} bytes behind a member that has no data"
        elif header[257:263] == _USTAR and header[263:265] != USTAR_MAGIC[6:] and header[345] and not self.pending:
            reason = f"composefs-rs 0.9.0 ignores a name's prefix in a header of version {header[263:265]!r}"
        if reason and not self.difference:
            self.difference = f"{reason} (tar offset {offset})"

    def _check_size(self, size: int) -> int:
        if size > self._max_size:
            raise ValueError(f"a member of {size} bytes, more than {self._max_size} (max_file_size, --max-file-size)")
        return size

    def _checked_path(self, path: bytes, what: str = "name") -> bytes:
        if not path:
            raise ValueError(f"an empty {what}")
        if b"\0" in path:
            raise ValueError(f"a NUL in the {what} {path[:64]!r}")
        if self._name_max is not None and len(path) > self._name_max:
            for part in path.split(b"/"):
                # A whiteout may name any file, so its prefix comes on top.
                if len(part) > self._name_max + (len(_WHITEOUT) if part.startswith(_WHITEOUT) else 0):
                    raise ValueError(f"a {what} with a component of {len(part)} bytes, more than {self._name_max}")
        return path.strip(b"/")

    def _checked_link(self, link: bytes, kind: EntryType) -> bytes:
        if kind is EntryType.HARDLINK:
            return self._checked_path(link, "link target")
        if kind is not EntryType.SYMLINK:
            return b""
        if not 1 <= len(link) <= _TARGET_MAX or b"\0" in link:
            raise ValueError(f"a link target of {len(link)} bytes, not 1 to {_TARGET_MAX} without NUL")
        return link


def _reason(error: ValueError) -> str:
    return "a PAX key is not UTF-8" if isinstance(error, UnicodeError) else str(error)
