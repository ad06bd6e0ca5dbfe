"""Single fields in the lines of dump files, composefs-dump(5).

Owns what may stand in a field, and its limits.  Does not own lines and what they make (`dumpfile`), nor escapes
(`escapes`).
"""

from __future__ import annotations

import re
import stat
from binascii import unhexlify
from typing import Final

from .escapes import unescape
from .inodes import Xattrs, make_xattrs

__all__ = [
    "CONTENT_MAX",
    "LINK",
    "MalformedError",
    "parse_content",
    "parse_mode",
    "parse_path",
    "parse_reference",
    "parse_target",
    "parse_text",
    "parse_time",
    "parse_u32",
    "parse_u64",
    "parse_unescaped",
    "parse_xattrs",
    "quoted",
]

CONTENT_MAX: Final = 5000
"""Bytes of content that mkcomposefs takes from a dump file; whoever makes trees leaves at most 64 inline."""
LINK: Final = 0
"""In place of the mode of a hard link, which says nothing."""
_PATH_MAX: Final = 4095
_XATTR_NAME_MAX: Final = 255
_XATTR_VALUE_MAX: Final = 65535
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_SECOND: Final = 1_000_000_000
_QUOTED_MAX: Final = 60
_DIGEST_LENGTHS: Final = (64, 128)  # hexadecimal digits of SHA-256 and SHA-512
_SLASH: Final = ord("/")
_KINDS: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_MODE: Final = 0xFFFF
_DIGITS_MAX: Final = 22
"""Of 64 bits, octal; a longer number is larger."""
_BACKSLASH: Final = ord("\\")
_octal = re.compile(rb"[ \t-\r]*([+-]?)([0-7]+)")
_decimal = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)")


class MalformedError(Exception):
    """What is wrong with the line at hand."""


def quoted(text: bytes) -> str:
    """Return *text* for a message: escaped, and cut if it is long."""
    return repr(text if len(text) <= _QUOTED_MAX else text[:_QUOTED_MAX] + b"...").removeprefix("b")


def parse_mode(text: bytes) -> int:
    """The mode, or `LINK` for that of a hard link, which says nothing."""
    digits = text.removeprefix(b"@")
    if not (found := _octal.fullmatch(digits)):
        raise MalformedError(f"invalid mode {quoted(text)}")
    mode = _wrapped(found, 8) & _MODE
    kind = stat.S_IFMT(mode)
    if kind not in _KINDS or (digits is not text and kind == stat.S_IFDIR):
        raise MalformedError(f"invalid mode {quoted(text)}")
    return mode if digits is text else LINK


def parse_u32(text: bytes) -> int:
    """A number of which the lower 32 bits count."""
    return parse_u64(text) & _U32


def parse_u64(text: bytes) -> int:
    """A number as strtoull(3) reads it: -1 is the largest, and so is all that is larger."""
    if text.isdigit() and len(text) < 20:
        return int(text)
    if not (found := _decimal.fullmatch(text)):
        raise MalformedError(f"invalid number {quoted(text)}")
    return _wrapped(found, 10)


def _wrapped(found: re.Match[bytes], base: int) -> int:
    digits = found[2].lstrip(b"0") or b"0"
    value = int(digits, base) if len(digits) <= _DIGITS_MAX else _U64 + 1
    if value > _U64:
        return _U64
    return -value & _U64 if found[1] == b"-" else value


def parse_time(text: bytes) -> int:
    """Nanoseconds of ``seconds.nanoseconds``, which are two numbers: 1.5 is five nanoseconds after one."""
    seconds, _, nanoseconds = text.partition(b".")
    count, fraction = parse_u64(seconds), parse_u32(nanoseconds)
    if fraction >= _SECOND:
        raise MalformedError(f"time {quoted(text)} has more nanoseconds than a second has")
    return (count - (count >> 63 << 64)) * _SECOND + fraction


def parse_reference(size: bytes, payload: bytes, digest: bytes) -> tuple[int, bytes | None, bytes | None]:
    """Size, digest and path of an external file as `ExternalFile` wants them."""
    length = parse_u64(size)
    if digest == b"-":
        return length, None, None if payload == b"-" else parse_path(payload) or None
    if len(digest) not in _DIGEST_LENGTHS or _BACKSLASH in digest:
        digest = parse_text(digest)
        if len(digest) != _DIGEST_LENGTHS[-1]:
            digest = digest[: _DIGEST_LENGTHS[0]]
    try:
        verity = unhexlify(digest) if len(digest) in _DIGEST_LENGTHS else None
    except ValueError:
        verity = None
    if verity is None:
        if length:  # mkcomposefs takes bytes that happen to be in its memory for the digest
            raise MalformedError(f"invalid digest {quoted(digest)}")
        return 0, None, None if payload == b"-" else parse_path(payload) or None
    # A digest has no slash, so that this is true of its canonical path alone.
    if payload.replace(b"/", b"", 1) == digest and payload[2] == _SLASH:
        return length, verity, None
    return length, verity, b"" if payload == b"-" else parse_path(payload)


def parse_content(field: bytes, size: bytes, *, maximum: int = CONTENT_MAX) -> bytes:
    """Parse the content of an inline file, which has *size* bytes and at most *maximum*."""
    content, length = parse_unescaped(field), parse_u64(size)
    if len(content) != length or length > maximum:
        raise MalformedError(f"{len(content)} bytes of content for a size of {length}, at most {maximum}")
    return content


def parse_target(field: bytes) -> bytes:
    """Parse the target of a symbolic link, which is not empty and at most as long as a path."""
    target = b"" if field == b"-" else parse_text(field)
    if not 0 < len(target) <= _PATH_MAX:
        raise MalformedError(f"the target of a link has {len(target)} bytes, not 1 to {_PATH_MAX}")
    return target


def parse_path(field: bytes) -> bytes:
    """Parse the path of an object."""
    path = parse_text(field)
    if len(path) > _PATH_MAX:
        raise MalformedError(f"a payload of {len(path)} bytes, at most {_PATH_MAX}")
    return path


def parse_text(field: bytes) -> bytes:
    """Text that an escaped NUL byte ends, as in C."""
    return parse_unescaped(field).partition(b"\0")[0]


def parse_unescaped(field: bytes) -> bytes:
    """Undo the escapes of a field."""
    try:
        return unescape(field)
    except ValueError as error:
        raise MalformedError(str(error)) from None


def parse_xattrs(text: bytes) -> Xattrs:
    """Attributes as ``NAME=VALUE``; one space at the end is none too many."""
    pairs = {}
    for pair in text.removesuffix(b" ").split(b" ") if text else ():
        name, equals, value = pair.partition(b"=")
        name, value = parse_text(name), parse_unescaped(value)
        if not equals or not 0 < len(name) <= _XATTR_NAME_MAX or len(value) > _XATTR_VALUE_MAX:
            raise MalformedError(f"invalid attribute {quoted(pair)}")
        pairs[name] = value
    return make_xattrs(pairs)
