"""Extended attributes as an image stores them: escaping, the overlay attributes, sharing, and the bytes.

Owns everything between an inode's header and its tail.  Does not own the order of inodes nor their places.

What makes it fast: inodes with equal attributes share one `Shape`, which is encoded once.  The overlay attributes
of a plain external file, whose redirect follows from its digest, are not part of it but slots in it.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple, TypeAlias

from ...digest import Algorithm
from ...tree.inodes import Directory, ExternalFile, Inode, Xattrs, object_path
from ..format import (
    ESCAPED_OVERLAY_PREFIX,
    NULL_CHUNK,
    OVERLAY_METACOPY,
    OVERLAY_PREFIX,
    OVERLAY_REDIRECT,
    PATH_MAX,
    SLOT,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_NAME_MAX,
    filter_bit,
    split_xattr_name,
)
from .blocks import pad
from .plan import refuse

__all__ = ["INLINE", "NONE", "SHARED", "Attributes", "Pairs", "Rules", "Shape", "escaped"]

NONE, INLINE, SHARED = 0, 1, 2
"""Whether a shape has slots for the overlay attributes of a plain external file, and where these are stored."""

Pair: TypeAlias = tuple[bytes, bytes]
"""Name, in full and escaped, and value."""
Pairs: TypeAlias = Sequence[Pair]

_AREA_MAX: Final = 12 + 4 * (0xFFFF - 1)  # what i_xattr_icount can tell
_VALUE_MAX: Final = 0xFFFF
_IDS_MAX: Final = 0xFF
_PLAIN_XATTRS_MAX: Final = 100  # far below every limit on shared attributes
_NAME_FILTER: Final = 0xFFFFFFFF
_IN_SLOT: Final = bytes(bytearray(b"slot"))
"""The value, known by its identity, of an attribute whose value differs from inode to inode."""
_SLOTS: Final = ((OVERLAY_METACOPY, _IN_SLOT), (OVERLAY_REDIRECT, _IN_SLOT))
_canonical_path = re.compile(rb"([0-9a-f]{2})/([0-9a-f]{62}|[0-9a-f]{126})")


class Rules(NamedTuple):
    """What the layouts, and the programs that write them, do not agree on."""

    by_index: bool
    """The shared table goes up by index, suffix and value; or down by name, length of the value and value."""
    overlay_first: bool
    """An inode's attributes begin with those of overlayfs; or are in order of their names."""
    shared_max: int
    """So many ids in an inode, then inline; beyond 255 is refused."""
    lustre: bool
    """Whether ``lustre.`` has an index."""
    payloads: bool
    """Whether a file's own payload is its redirect, or always the canonical path of its digest."""
    empty_is_external: bool
    """Whether an external file of no bytes is one."""
    size_max: int
    """A longer external file needs more than one chunk."""
    total_max: int
    """Bytes of all attributes of an inode, as C composefs counts them; 0 for no limit but that of the format."""


def escaped(xattrs: Xattrs) -> Pairs:
    """*xattrs* with those of overlayfs hidden from it."""
    cut = len(OVERLAY_PREFIX)
    return [
        (ESCAPED_OVERLAY_PREFIX + name[cut:], value) if name.startswith(OVERLAY_PREFIX) else (name, value)
        for name, value in xattrs
    ]


def _encode(pair: Pair, lustre: bool) -> bytes:
    name, value = pair
    index, suffix = split_xattr_name(name, lustre)
    entry = XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
    return entry + pad(-len(entry) % 4)


class Shape:
    """The attributes that some inodes have in common, and their bytes.

    With slots, the area is `before`, the digest or the id of the metacopy attribute, `between`, the path without
    its slash or the id of the redirect attribute, and `after`, which goes on over the null chunk of the file to
    the next slot.  Without slots it is `before` alone.
    """

    __slots__ = (
        "after",
        "before",
        "between",
        "example",
        "icount",
        "inline",
        "pairs",
        "room",
        "shared",
        "size",
        "slots",
    )

    example: Inode
    pairs: Pairs
    slots: int
    before: bytes
    between: bytes
    after: bytes
    size: int
    room: int
    icount: int

    def __init__(self, example: Inode, pairs: Pairs, slots: int) -> None:
        self.example = example
        self.pairs = pairs
        self.slots = slots
        self.before = self.between = self.after = b""
        self.shared: list[Pair] = []
        self.inline: list[Pair] = []
        self.size = 0
        """Of the area, in bytes."""
        self.room = 0
        """With slots, from the inode's header, which ends where a slot does, to the next inode."""
        self.icount = 0
        """As the inode has it."""

    def counted(self, pairs: Pairs) -> Pairs:
        """Leave out of *pairs* the attributes that are in slots."""
        return [pair for pair in pairs if pair[1] is not _IN_SLOT] if self.slots else pairs


class Attributes:
    """The attributes of all inodes of an image, in the order of these inodes.

    Args:
        special: inodes whose attributes are not simply theirs, with the escaped ones they get.
    """

    def __init__(
        self, root: Directory, inodes: list[Inode], special: Mapping[Inode, Pairs], rules: Rules, algorithm: Algorithm
    ) -> None:
        self._root, self._rules, self._algorithm = root, rules, algorithm
        size = algorithm.digest_size + 4
        self._metacopy_head = bytes([0, size, 0, algorithm.number])  # struct ovl_metacopy (fs/overlayfs/overlayfs.h)
        self._slot_sizes = {
            OVERLAY_METACOPY: len(b"overlay.metacopy") + size,
            OVERLAY_REDIRECT: len(b"overlay.redirect") + len(b"/") + len(object_path(bytes(algorithm.digest_size))),
        }
        externals = [inode for inode in inodes if type(inode) is ExternalFile]
        digests = Counter([file.digest for file in externals])
        self._check_digests(externals, digests)
        odd = self._odd(externals)
        if odd:
            digests = Counter([file.digest for file in externals if file not in odd])
        self._repeated = {digest for digest, number in digests.items() if number > 1 and digest is not None}
        self.ids: dict[bytes, tuple[bytes, bytes]] = {}
        """What fills the slots of a shape that shares them."""
        self.shapes: list[Shape] = self._shapes(inodes, special, odd)
        self._tabulate()

    # -- which inodes have which shape

    def _check_digests(self, externals: list[ExternalFile], digests: Iterable[bytes | None]) -> None:
        lengths = {len(digest) for digest in digests if digest is not None}
        if lengths - {self._algorithm.digest_size}:
            wanted = self._algorithm.digest_size
            bad = next(file for file in externals if file.digest is not None and len(file.digest) != wanted)
            refuse(self._root, bad, f"its digest is not one of {self._algorithm.text}")

    def _odd(self, externals: list[ExternalFile]) -> set[ExternalFile]:
        """Those whose overlay attributes do not both follow from the digest, or are not shared like each other."""
        limit, payloads = self._rules.size_max, self._rules.payloads
        odd = {
            file
            for file in externals
            if file.digest is None
            or not 0 < file.size <= limit
            or (payloads and file.payload is not None)
            or len(file.xattrs) > _PLAIN_XATTRS_MAX
        }
        if odd:
            # A plain file that has one attribute in common with an odd one shares just that.
            touched = {file.digest for file in odd} | {_digest_of(file.payload) for file in odd}
            odd |= {file for file in externals if file.digest in touched}
        return odd

    def _shapes(self, inodes: list[Inode], special: Mapping[Inode, Pairs], odd: set[ExternalFile]) -> list[Shape]:
        shapes: list[Shape] = []
        made: tuple[dict[Xattrs, Shape], ...] = {}, {}, {}  # by slots
        repeated = self._repeated
        for inode in inodes:
            if type(inode) is ExternalFile:
                if odd and inode in odd:
                    shapes.append(self._make(inode, self._with_overlay(inode), NONE))
                    continue
                slots = SHARED if inode.digest in repeated else INLINE
            elif special and inode in special:
                shapes.append(self._make(inode, special[inode], NONE))
                continue
            else:
                slots = NONE
            xattrs = inode.xattrs
            shape = made[slots].get(xattrs)
            if shape is None:
                own = escaped(xattrs)
                shape = made[slots][xattrs] = self._make(inode, [*_SLOTS, *own] if slots else own, slots)
            shapes.append(shape)
        return shapes

    def _with_overlay(self, file: ExternalFile) -> Pairs:
        if not (file.size or self._rules.empty_is_external):
            return escaped(file.xattrs)
        metacopy = self._metacopy_head + file.digest if file.digest is not None else b""
        canonical = file.digest is not None and not self._rules.payloads
        path = object_path(file.digest) if canonical and file.digest is not None else file.path
        if len(path) > PATH_MAX or b"\0" in path:
            refuse(self._root, file, f"an object at a path that cannot be: {path[:300]!r} of {len(path)} bytes")
        overlay = [(OVERLAY_METACOPY, metacopy), *([(OVERLAY_REDIRECT, b"/" + path)] if path else [])]
        return [*overlay, *escaped(file.xattrs)]

    def _make(self, inode: Inode, pairs: Pairs, slots: int) -> Shape:
        reason = self._fault(inode.xattrs, pairs)
        if reason:
            refuse(self._root, inode, reason)
        return Shape(inode, pairs if self._rules.overlay_first else sorted(pairs), slots)

    def _fault(self, xattrs: Xattrs, pairs: Pairs) -> str:
        limit = self._rules.total_max
        total = 12 + sum(7 + len(name) + len(value) for name, value in xattrs)
        if limit and total > limit:
            return f"attributes of {total} bytes, at most {limit}"
        if not all(first[0] < second[0] for first, second in pairwise(xattrs)):
            return "attributes that are not in order, or not unique"
        for name, value in xattrs:
            if not 0 < len(name) <= XATTR_NAME_MAX or b"\0" in name or len(value) > _VALUE_MAX:
                return f"an attribute that no file can have: {name[:300]!r} with {len(value)} bytes"
        if len({name for name, _ in pairs}) != len(pairs):
            return "two attributes that become the same when escaped"
        return ""

    # -- what is shared

    def _tabulate(self) -> None:
        counts: Counter[Pair] = Counter()
        for shape, number in Counter(self.shapes).items():
            for pair in shape.counted(shape.pairs):
                counts[pair] += number
        shared = [pair for pair, number in counts.items() if number > 1]
        for digest in self._repeated:
            shared += self._overlay(digest)
        shared.sort(key=self._sort_key, reverse=not self._rules.by_index)
        self.table: list[bytes] = [_encode(pair, self._rules.lustre) for pair in shared]
        self.table_size: int = sum(map(len, self.table))
        self._offsets = dict(zip(shared, accumulate(map(len, self.table), initial=0), strict=False))
        for shape in self._distinct():
            self._settle(shape)

    def _sort_key(self, pair: Pair) -> tuple[int | bytes, int | bytes, bytes]:
        name, value = pair
        if self._rules.by_index:
            return *split_xattr_name(name, self._rules.lustre), value
        return name, len(value), value

    def _overlay(self, digest: bytes) -> tuple[Pair, Pair]:
        return (OVERLAY_METACOPY, self._metacopy_head + digest), (OVERLAY_REDIRECT, b"/" + object_path(digest))

    def _distinct(self) -> Iterable[Shape]:
        return dict.fromkeys(self.shapes)

    def _settle(self, shape: Shape) -> None:
        """Decide what is shared, and reckon the size."""
        limit = self._rules.shared_max
        for pair in shape.pairs:
            in_table = shape.slots == SHARED if pair[1] is _IN_SLOT else pair in self._offsets
            if in_table and len(shape.shared) < limit:
                shape.shared.append(pair)
            else:
                shape.inline.append(pair)
        if not shape.pairs:
            return
        shape.size = XATTR_HEADER.size + 4 * len(shape.shared) + sum(map(self._entry_size, shape.inline))
        shape.room = shape.size + len(NULL_CHUNK) + SLOT - 1 & -SLOT
        shape.icount = (shape.size - XATTR_HEADER.size) // 4 + 1
        if len(shape.shared) > _IDS_MAX:
            refuse(
                self._root, shape.example, f"{len(shape.shared)} attributes that other files have, at most {_IDS_MAX}"
            )
        if shape.size > _AREA_MAX:
            refuse(self._root, shape.example, f"attributes of {shape.size} bytes, at most {_AREA_MAX}")

    def _entry_size(self, pair: Pair) -> int:
        name, value = pair
        if value is _IN_SLOT:
            size = self._slot_sizes[name]
        else:
            size = len(split_xattr_name(name, self._rules.lustre)[1]) + len(value)
        return XATTR_ENTRY.size + size + 3 & ~3

    # -- bytes

    def locate(self, base: int) -> None:
        """Make the bytes, now that the table lies *base* bytes behind where ids count from."""
        self._base = base
        for shape in self._distinct():
            if shape.pairs:
                self._compile(shape)
        for digest in self._repeated:
            metacopy, redirect = self._overlay(digest)
            self.ids[digest] = self._id(metacopy), self._id(redirect)

    def _id(self, pair: Pair) -> bytes:
        return (self._base + self._offsets[pair] >> 2).to_bytes(4, "little")

    def _compile(self, shape: Shape) -> None:
        parts: list[list[bytes]] = [[XATTR_HEADER.pack(self._name_filter(shape), len(shape.shared))]]
        for pair in shape.shared:
            if pair[1] is _IN_SLOT:
                parts.append([])
            else:
                parts[-1].append(self._id(pair))
        for pair in shape.inline:
            if pair[1] is _IN_SLOT:
                before, after = self._around_slot(pair[0])
                parts[-1].append(before)
                parts.append([after])
            else:
                parts[-1].append(_encode(pair, self._rules.lustre))
        if shape.slots:
            parts[-1].append(NULL_CHUNK + pad(shape.room - shape.size - len(NULL_CHUNK)))
            shape.before, shape.between, shape.after = map(b"".join, parts)
        else:
            shape.before = b"".join(parts[0])

    def _around_slot(self, name: bytes) -> tuple[bytes, bytes]:
        """What stands before and behind the digest, or the path without its slash, of an inline overlay attribute."""
        index, suffix = split_xattr_name(name, self._rules.lustre)
        size = self._slot_sizes[name] - len(suffix)
        start = self._metacopy_head if name == OVERLAY_METACOPY else b"/"
        head = XATTR_ENTRY.pack(len(suffix), index, size) + suffix
        return head + start, pad(-(len(head) + size) % 4)

    def _name_filter(self, shape: Shape) -> int:
        bits = 0
        for name, _ in shape.pairs:
            bits |= 1 << filter_bit(*split_xattr_name(name, self._rules.lustre))
        return _NAME_FILTER & ~bits

    def names(self) -> set[bytes]:
        """Return the names of all attributes in the image."""
        return {name for shape in self._distinct() for name, _ in shape.pairs}


def _digest_of(payload: bytes | None) -> bytes | None:
    """The digest whose canonical path *payload* is."""
    match = _canonical_path.fullmatch(payload or b"")
    return unhexlify(match[1] + match[2]) if match else None
