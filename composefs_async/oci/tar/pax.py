"""The records of a PAX extended header that mean something to a layer.

Owns the syntax of records, their values and which are refused; every refusal is a ValueError, to which
`header` adds the place.  It does not own how records and header fields go together, nor sparse members
(`sparse`).

Sources: POSIX pax(1) "pax Extended Header"; SCHILY.xattr as star, GNU tar and Go write it.
"""

from __future__ import annotations

import re

from .sparse import SparseRecords

__all__ = ["PaxRecords", "signed64"]

_XATTR_NAME_MAX = 255  # linux/limits.h
_XATTR_VALUE_MAX = 65535  # what an EROFS image can hold in e_value_size (fs/erofs/erofs_fs.h)

_HEADER_KEYS = frozenset((b"mtime", b"path", b"linkpath", b"size", b"uid", b"gid"))
_UNSIGNED = re.compile(rb"\+?[0-9]{1,20}")
_SIGNED = re.compile(rb"[+-]?[0-9]{1,20}")
_NANOSECONDS = re.compile(rb"\+?[0-9]+")


class PaxRecords:
    """One extended header's *data*, of which the last of equal records counts; an empty one leaves the header's value.

    Raises:
        ValueError: a record is malformed.
    """

    def __init__(self, data: bytes) -> None:
        self.path: bytes | None = None
        self.link: bytes | None = None
        self.size: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.mtimes: list[bytes] = []
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: SparseRecords | None = None
        self.oddity: str = ""
        """What composefs-rs 0.9.0 does not read; empty if it reads all."""
        for key, value in _records(data):
            self._take(key, value)
        self.mtime_ns: int | None = _mtime_ns(self.mtimes[0], self.mtimes[-1]) if self.mtimes else None

    def _take(self, key: bytes, value: bytes) -> None:
        if key.startswith(b"SCHILY.xattr."):
            self.xattrs[_xattr_name(key[13:], value)] = value
        elif key in _HEADER_KEYS:
            self._take_instead(key, value)
        elif key.startswith(b"GNU.sparse."):
            self.sparse = self.sparse or SparseRecords()
            self.sparse.take(key[11:], value)
        elif not key.isascii():
            key.decode()

    def _take_instead(self, key: bytes, value: bytes) -> None:
        """Take what counts in place of a field of the header."""
        if not value or value.startswith(b"-"):
            self.oddity = self.oddity or f"the record {key.decode()}={value[:32].decode(errors='replace')}"
        if key == b"mtime":
            self.mtimes = [*self.mtimes, value] if value else []
        elif key == b"path":
            self.path = value or None
        elif key == b"linkpath":
            self.link = value or None
        elif key == b"size":
            self.size = _unsigned64(value) if value else None
        elif key == b"uid":
            self.uid = _owner(value) if value else None
        else:
            self.gid = _owner(value) if value else None


def signed64(value: int) -> int:
    """What a signed number of 64 bits makes of *value*."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _unsigned64(value: bytes) -> int:
    if not _UNSIGNED.fullmatch(value) or (found := int(value)) >> 64:
        raise ValueError(f"{value!r} is not a number of 64 bits")
    return found


def _owner(value: bytes) -> int:
    """As a number of 32 bits, so that -1 is 4294967295, which Linux takes for "no owner"."""
    if not _SIGNED.fullmatch(value) or not -(1 << 63) <= (found := int(value)) < 1 << 64:
        raise ValueError(f"{value!r} is not a number of 64 bits")
    return found & 0xFFFFFFFF


def _records(data: bytes) -> list[tuple[bytes, bytes]]:
    records: list[tuple[bytes, bytes]] = []
    at, end = 0, len(data)
    while at < end:
        space = data.find(b" ", at, at + 21)
        if space < 0 or not data[at:space].isdigit():
            if data.count(0, at) == end - at:  # some writers fill the block up and count that in
                break
            raise ValueError("a PAX record has no length")
        stop = at + int(data[at:space])
        if not space + 1 < stop <= end or data[stop - 1] != 0x0A:
            raise ValueError("a PAX record does not end where its length says")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals:
            raise ValueError("a PAX record has no '='")
        records.append((key, value))
        at = stop
    return records


def _xattr_name(name: bytes, value: bytes) -> bytes:
    name.decode()
    if not 1 <= len(name) <= _XATTR_NAME_MAX or b"\0" in name:
        raise ValueError(f"an xattr cannot be named {name[:64]!r}")
    if len(value) > _XATTR_VALUE_MAX:
        raise ValueError(f"xattr {name!r} has {len(value)} bytes, more than {_XATTR_VALUE_MAX}")
    return name


def _mtime_ns(first: bytes, last: bytes) -> int:
    """Seconds of the last record, and the fraction of the first one as composefs-rs reads it.

    The two are one record in every sane archive.  A negative time is what it is written as: "-1.5" is
    one and a half seconds before 1970.
    """
    whole = last.partition(b".")[0]
    if not _SIGNED.fullmatch(whole) or not -(1 << 63) <= (seconds := int(whole)) < 1 << 64:
        raise ValueError(f"{last!r} is not a time")
    digits = first.partition(b".")[2][:9]
    fraction = int(digits) * 10 ** (9 - len(digits)) if _NANOSECONDS.fullmatch(digits) else 0
    return signed64(seconds) * 1_000_000_000 + (-fraction if whole.startswith(b"-") else fraction)
