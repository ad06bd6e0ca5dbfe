"""Extended attributes of an image: decodes them, and tells those of the tree from those of composefs.

Owns the form of the entries (linux/fs/erofs/erofs_fs.h, ``struct erofs_xattr_entry``), the escaping of a user's
``trusted.overlay.*`` and the name filter.  Does not decide what a file with overlay attributes is.

A set of attributes that is wholly shared is decoded once and then found by its ids, since a labelled tree has
few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

from ...errors import ErofsError
from ..format import (
    ESCAPED_OVERLAY_PREFIX,
    OVERLAY_METACOPY,
    OVERLAY_OPAQUE,
    OVERLAY_PREFIX,
    OVERLAY_REDIRECT,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_NAME_MAX,
    XATTR_PREFIXES,
    filter_bit,
)

__all__ = ["NO_XATTR_SET", "Xattr", "XattrReader", "XattrSet"]

Xattr: TypeAlias = tuple[bytes, bytes]

_ACTIVE: Final = (OVERLAY_METACOPY, OVERLAY_REDIRECT)
_LUSTRE: Final = b"lustre."


class XattrSet(NamedTuple):
    """The attributes of an inode, told apart."""

    own: tuple[Xattr, ...] = ()
    """Sorted, escapes undone: those of the tree, and the marks that layouts 0 and 1 add for whiteouts."""
    metacopy: bytes | None = None
    redirect: bytes | None = None
    opaque: bool = False
    """Whether ``trusted.overlay.opaque=y`` is there, which layouts 0 and 1 give to the root."""
    filter_bits: int = 0
    """Bits that the name filter must leave clear for the kernel to find all of them."""

    repeated: bool = False
    """Whether a name stands twice in `own`."""
    has_overlay: bool = False
    """Whether one of the attributes acts upon overlayfs."""


NO_XATTR_SET: Final = XattrSet()


class XattrReader:
    """Decodes attributes of one image.

    Args:
        base: the offset from which shared ids count.
        has_filter: whether name filters count.
        claim: is told how many bytes were decoded, and raises when it is more than the image has.
    """

    def __init__(self, image: bytes, base: int, has_filter: bool, claim: Callable[[int, int], None]) -> None:
        self._image, self._base, self._has_filter, self._claim = image, base, has_filter, claim
        self._names: dict[tuple[int, bytes], tuple[bytes, int]] = {}
        self._entries: dict[int, tuple[bytes, bytes, int]] = {}
        self._sets: dict[bytes, XattrSet] = {}

    def read(self, offset: int, size: int) -> XattrSet:
        """The attributes in the area of *size* bytes at *offset*, which must lie inside the image."""
        if size == XATTR_HEADER.size:
            # So does the kernel (fs/erofs/xattr.c, erofs_init_inode_xattrs), whichever attribute is asked for.
            raise ErofsError("an area of attributes that has none", offset)
        name_filter, count = XATTR_HEADER.unpack_from(self._image, offset)
        inline = offset + XATTR_HEADER.size + 4 * count
        end = offset + size
        if inline > end:
            raise ErofsError(f"{count} shared attributes in an area of {size} bytes", offset)
        ids = self._image[offset + XATTR_HEADER.size : inline]
        found = self.shared(ids, offset) if inline == end else self._mixed(ids, inline, end)
        # The kernel would not find the attribute, so the file would be another one than here.
        if self._has_filter and found.filter_bits & name_filter:
            raise ErofsError("the name filter hides an attribute", offset)
        return found

    def shared(self, ids: bytes, offset: int) -> XattrSet:
        """The attributes with these *ids*, four bytes each, which stand at *offset*."""
        found = self._sets.get(ids)
        if found is None:
            self._claim(len(ids), offset)
            found = self._sets[ids] = _sort_out(self._shared_entries(ids), offset)
        return found

    def _mixed(self, ids: bytes, inline: int, end: int) -> XattrSet:
        self._claim(end - inline + len(ids), inline)
        return _sort_out([*self._shared_entries(ids), *self._inline_entries(inline, end)], inline)

    def _shared_entries(self, ids: bytes) -> Iterator[tuple[bytes, bytes, int]]:
        for at in range(0, len(ids), 4):
            number = int.from_bytes(ids[at : at + 4], "little")
            entry = self._entries.get(number)
            if entry is None:
                start = self._base + 4 * number
                name, value, bit, after = self._entry(start, len(self._image))
                self._claim(after - start, start)
                entry = self._entries[number] = (name, value, bit)
            yield entry

    def _inline_entries(self, at: int, end: int) -> Iterator[tuple[bytes, bytes, int]]:
        while at < end:
            name, value, bit, at = self._entry(at, end)
            yield name, value, bit

    def _entry(self, at: int, end: int) -> tuple[bytes, bytes, int, int]:
        """Name, value, bit of the filter, and where the next entry begins."""
        image = self._image
        if at + XATTR_ENTRY.size > end:
            raise ErofsError("an attribute is cut short", at)
        size, index, value_size = XATTR_ENTRY.unpack_from(image, at)
        value = at + XATTR_ENTRY.size + size
        value_end = value + value_size
        after = value_end + 3 & ~3
        if after > end:
            raise ErofsError("an attribute is cut short", at)
        key = index, image[at + XATTR_ENTRY.size : value]
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = _full_name(*key, at)
        return name[0], image[value:value_end], name[1], after


def _full_name(index: int, suffix: bytes, offset: int) -> tuple[bytes, int]:
    """The name that *index* and *suffix* stand for, and its bit in name filters."""
    prefix = XATTR_PREFIXES.get(index)
    if prefix is None:
        raise ErofsError(f"unknown index {index} of an attribute name", offset)
    name = prefix + suffix
    limit = XATTR_NAME_MAX + (len(ESCAPED_OVERLAY_PREFIX) - len(OVERLAY_PREFIX)) * name.startswith(
        ESCAPED_OVERLAY_PREFIX
    )
    if not name or b"\0" in name or len(name) > limit:
        raise ErofsError(f"invalid attribute name {name!r}", offset)
    # The kernel finds such a name neither under index 0 nor under its own.  lustre. is an exception:
    # mkcomposefs has no index for it.
    if index == 0 and any(name.startswith(other) for other in XATTR_PREFIXES.values() if other not in (b"", _LUSTRE)):
        raise ErofsError(f"attribute {name!r} is not stored under the index of its prefix", offset)
    return name, 1 << filter_bit(index, suffix)


def _sort_out(entries: Iterable[tuple[bytes, bytes, int]], offset: int) -> XattrSet:
    own: list[Xattr] = []
    overlay: dict[bytes, bytes] = {}
    bits = 0
    for name, value, bit in entries:
        bits |= bit
        if not name.startswith(OVERLAY_PREFIX):
            own.append((name, value))
        elif name.startswith(ESCAPED_OVERLAY_PREFIX):
            own.append((OVERLAY_PREFIX + name[len(ESCAPED_OVERLAY_PREFIX) :], value))
        elif name in overlay:
            raise ErofsError(f"two attributes {name.decode()}", offset)
        elif name in _ACTIVE or (name, value) == (OVERLAY_OPAQUE, b"y"):
            overlay[name] = value
        else:
            raise ErofsError(f"composefs does not write the attribute {name!r}", offset)
    own.sort()
    metacopy, redirect = overlay.get(OVERLAY_METACOPY), overlay.get(OVERLAY_REDIRECT)
    repeated = len(dict(own)) < len(own)
    return XattrSet(tuple(own), metacopy, redirect, OVERLAY_OPAQUE in overlay, bits, repeated, bool(overlay))
