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

_CONTENT_MAX: Final = 5000
"""Bytes of content that mkcomposefs takes from a dump file; whoever makes trees leaves at most 64 inline."""
LINK: Final = 0
"""In place of the mode of a hard link, which says nothing."""
_PATH_MAX: Final = 4095
_XATTR_NAME_MAX: Final = 255
_XATTR_VALUE_MAX: Final = 65535
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_SECOND: Final = 1_000_000_000
_SECONDS_MAX: Final = 1 << 63
_QUOTED_MAX: Final = 60
_DIGEST_LENGTHS: Final = (64, 128)  # hexadecimal digits of SHA-256 and SHA-512
_SLASH: Final = ord("/")
_TIME_LENGTH: Final = 30
_KINDS: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_S_IFMT: Final = 0o170000
_octal = re.compile(rb"[0-7]{1,12}")


class MalformedError(Exception):
    """What is wrong with the line at hand."""


def quoted(text: bytes) -> str:
    return repr(text if len(text) <= _QUOTED_MAX else text[:_QUOTED_MAX] + b"...").removeprefix("b")


def parse_mode(text: bytes) -> int:
    """The mode, or `LINK` for that of a hard link, which says nothing."""
    digits = text.removeprefix(b"@")
    if not _octal.fullmatch(digits):
        raise MalformedError(f"invalid mode {quoted(text)}")
    mode = int(digits, 8)
    kind = mode & _S_IFMT  # not stat.S_IFMT, which refuses more than 32 bits
    if digits is not text and kind != stat.S_IFDIR:
        return LINK
    if digits is not text or kind not in _KINDS or mode > 0o177777:
        raise MalformedError(f"invalid mode {quoted(text)}")
    return mode


def parse_u32(text: bytes) -> int:
    value = parse_u64(text)
    if value > _U32:
        raise MalformedError(f"{value} does not fit into 32 bits")
    return value


def parse_u64(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20 or (value := int(text)) > _U64:
        raise MalformedError(f"invalid number {quoted(text)}")
    return value


def parse_time(text: bytes) -> int:
    """Nanoseconds of ``seconds.nanoseconds``, which are two numbers: 1.5 is five nanoseconds after one."""
    seconds, _, nanoseconds = text.partition(b".")
    if not (seconds.removeprefix(b"-").isdigit() and nanoseconds.isdigit() and len(text) <= _TIME_LENGTH):
        raise MalformedError(f"invalid time {quoted(text)}")
    count, fraction = int(seconds), int(nanoseconds)
    if not -_SECONDS_MAX <= count < _SECONDS_MAX or fraction >= _SECOND:
        raise MalformedError(f"time {quoted(text)} is out of range")
    return count * _SECOND + fraction


def parse_reference(size: bytes, payload: bytes, digest: bytes) -> tuple[int, bytes | None, bytes | None]:
    """Size, digest and path of an external file as `ExternalFile` wants them."""
    length = parse_u64(size)
    if digest == b"-":
        return length, None, None if payload == b"-" else parse_path(payload)
    if len(digest) not in _DIGEST_LENGTHS:
        raise MalformedError(f"invalid digest {quoted(digest)}")
    try:
        verity = unhexlify(digest)
    except ValueError:
        raise MalformedError(f"invalid digest {quoted(digest)}") from None
    # A digest has no slash, so that this is true of its canonical path alone.
    if payload.replace(b"/", b"", 1) == digest and payload[2] == _SLASH:
        return length, verity, None
    return length, verity, b"" if payload == b"-" else parse_path(payload)


def parse_content(field: bytes, size: bytes) -> bytes:
    content = parse_unescaped(field)
    if len(content) != parse_u64(size) or len(content) > _CONTENT_MAX:
        raise MalformedError(f"{len(content)} bytes of content for a size of {size.decode()}, at most {_CONTENT_MAX}")
    return content


def parse_target(field: bytes) -> bytes:
    target = b"" if field == b"-" else parse_text(field)
    if not 0 < len(target) <= _PATH_MAX:
        raise MalformedError(f"the target of a link has {len(target)} bytes, not 1 to {_PATH_MAX}")
    return target


def parse_path(field: bytes) -> bytes:
    """Of an object."""
    path = parse_text(field)
    if len(path) > _PATH_MAX:
        raise MalformedError(f"a payload of {len(path)} bytes, at most {_PATH_MAX}")
    return path


def parse_text(field: bytes) -> bytes:
    text = parse_unescaped(field)
    if b"\0" in text:
        raise MalformedError("an escaped NUL byte where none can be")
    return text


def parse_unescaped(field: bytes) -> bytes:
    try:
        return unescape(field)
    except ValueError as error:
        raise MalformedError(str(error)) from None


def parse_xattrs(text: bytes) -> Xattrs:
    if text.endswith(b"\r"):
        raise MalformedError("a carriage return at the end")
    pairs = {}
    for pair in text.split(b" "):
        name, equals, value = pair.partition(b"=")
        name, value = parse_text(name), parse_unescaped(value)
        if not equals or not 0 < len(name) <= _XATTR_NAME_MAX or len(value) > _XATTR_VALUE_MAX:
            raise MalformedError(f"invalid attribute {quoted(pair)}")
        pairs[name] = value
    return make_xattrs(pairs)
