"""Damaged and hostile images: every check of the readers has an image that only it refuses."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import Algorithm
from composefs_async.erofs.reader.tree import image_info, image_to_tree
from composefs_async.erofs.references import image_object_ids
from composefs_async.errors import ErofsError

IMAGES = Path(__file__).parents[1] / "vectors" / "hostile"
BLOCK = 4096


class Editor:
    """An image to be patched; decodes just enough of it to find things."""

    def __init__(self, name: str) -> None:
        self.data = bytearray((IMAGES / f"{name}.img").read_bytes())

    def get(self, offset: int, form: str) -> int:
        value: int = struct.unpack_from("<" + form, self.data, offset)[0]
        return value

    def put(self, offset: int, form: str, value: int) -> None:
        struct.pack_into("<" + form, self.data, offset, value)

    def nid(self, path: str) -> int:
        nid = self.get(1024 + 14, "H")
        for name in path.strip("/").split("/") if path != "/" else []:
            nid = self.get(self.dirent(nid, name)[0], "Q")
        return nid

    def inode(self, path: str) -> int:
        return 32 * self.nid(path)

    def body(self, offset: int) -> int:
        return offset + (64 if self.data[offset] & 1 else 32)

    def tail(self, offset: int) -> int:
        count = self.get(offset + 2, "H")
        return self.body(offset) + (8 + 4 * count if count else 0)

    def entries(self, nid: int) -> Iterator[tuple[str, int, int]]:
        """Name, offset of the dirent, offset of the name."""
        offset = 32 * nid
        size = self.get(offset + 8, "I")
        block = self.get(offset + 16, "I")
        for start, length in [
            *(((block + i) * BLOCK, BLOCK) for i in range(size // BLOCK)),
            *([(self.tail(offset), size % BLOCK)] if size % BLOCK else []),
        ]:
            count = self.get(start + 8, "H") // 12
            starts = [self.get(start + 12 * i + 8, "H") for i in range(count)]
            for i, (at, end) in enumerate(zip(starts, [*starts[1:], length], strict=True)):
                name = self.data[start + at : start + end].rstrip(b"\0").decode()
                yield name, start + 12 * i, start + at

    def dirent(self, directory: int, wanted: str) -> tuple[int, int]:
        return next((dirent, text) for name, dirent, text in self.entries(directory) if name == wanted)

    def entry(self, path: str) -> int:
        above, _, name = path.rpartition("/")
        return self.dirent(self.nid(above or "/"), name)[0]

    def name(self, path: str) -> int:
        above, _, name = path.rpartition("/")
        return self.dirent(self.nid(above or "/"), name)[1]

    def find(self, path: str, text: bytes) -> int:
        """Where *text* stands in or after the inode at *path*."""
        return self.data.index(text, self.inode(path))

    def grow(self, content: bytes, at: int = 0) -> int:
        """Append blocks with *content* at the offset *at* in them, and return the number of an inode there."""
        start = len(self.data)
        self.data += bytes(at) + content
        self.data += bytes(-len(self.data) % BLOCK)
        self.put(1024 + 36, "I", len(self.data) // BLOCK)
        return (start + at) // 32


def compact(layout: int, mode: int, size: int, xattrs: bytes = b"", nlink: int = 1, address: int = 0) -> bytes:
    count = (len(xattrs) - 12) // 4 + 1 if xattrs else 0
    return struct.pack("<HHHHI4xI8xHH4x", layout << 1, count, mode, nlink, size, address, 0, 0)[:32] + xattrs


def attributes(*entries: tuple[int, bytes, bytes]) -> bytes:
    """An area without a name filter."""
    area = bytes(12)
    for index, suffix, value in entries:
        entry = struct.pack("<BBH", len(suffix), index, len(value)) + suffix + value
        area += entry + bytes(-len(entry) % 4)
    return area


def listing(*entries: tuple[bytes, int, int]) -> bytes:
    """A directory block of names, nids and types."""
    at, heads = 12 * len(entries), b""
    for name, nid, kind in entries:
        heads += struct.pack("<QHBx", nid, at, kind)
        at += len(name)
    return heads + b"".join(name for name, _, _ in entries)


def set_at(place: Callable[[Editor], int], form: str, value: int) -> Callable[[Editor], None]:
    return lambda image: image.put(place(image), form, value)


def superblock(offset: int, form: str, value: int) -> Callable[[Editor], None]:
    return set_at(lambda _: 1024 + offset, form, value)


def field(path: str, offset: int, form: str, value: int) -> Callable[[Editor], None]:
    return set_at(lambda image: image.inode(path) + offset, form, value)


def dirent(path: str, offset: int, form: str, value: int) -> Callable[[Editor], None]:
    return set_at(lambda image: image.entry(path) + offset, form, value)


def renamed(path: str, name: bytes) -> Callable[[Editor], None]:
    def edit(image: Editor) -> None:
        at = image.name(path)
        image.data[at : at + len(name)] = name

    return edit


def dot(path: str, name: str, offset: int, form: str, value: int) -> Callable[[Editor], None]:
    return set_at(lambda image: image.dirent(image.nid(path), name)[0] + offset, form, value)


def dot_renamed(path: str, name: str, new: bytes) -> Callable[[Editor], None]:
    def edit(image: Editor) -> None:
        at = image.dirent(image.nid(path), name)[1]
        image.data[at : at + len(new)] = new

    return edit


def text(path: str, old: bytes, new: bytes) -> Callable[[Editor], None]:
    def edit(image: Editor) -> None:
        at = image.find(path, old)
        image.data[at : at + len(new)] = new

    return edit


def leads_to(path: str, target: str) -> Callable[[Editor], None]:
    return lambda image: image.put(image.entry(path), "Q", image.nid(target))


def replaced(path: str, inode: bytes, at: int = 0) -> Callable[[Editor], None]:
    """The entry at *path* leads to a new inode."""
    return lambda image: image.put(image.entry(path), "Q", image.grow(inode, at))


def replaced_directory(path: str, xattrs: bytes, **fields: int) -> Callable[[Editor], None]:
    def edit(image: Editor) -> None:
        nid = len(image.data) // 32
        above = image.nid(path.rpartition("/")[0] or "/")
        tail = listing((b".", nid, 2), (b"..", above, 2))
        size = fields.get("size", len(tail))
        inode = compact(fields.get("layout", 2), 0o40755, size, xattrs, nlink=2)
        assert image.grow(inode + tail) == nid
        image.put(image.entry(path), "Q", nid)

    return edit


def metacopy_byte(index: int, value: int) -> Callable[[Editor], None]:
    return set_at(lambda image: image.find("/usr/a", b"overlay.metacopy") + 16 + index, "B", value)


REGULAR, LINK = 0o100644, 0o120777
DAMAGE: list[tuple[str, str, Callable[[Editor], Any], str]] = [
    # headers
    ("composefs magic", "v1", set_at(lambda _: 0, "I", 1), "not a composefs image"),
    ("header version", "v1", set_at(lambda _: 4, "I", 2), "version 2 of the composefs header"),
    ("layout version", "v1", set_at(lambda _: 12, "I", 3), "unknown layout version 3"),
    ("erofs magic", "v1", superblock(0, "I", 1), "not an EROFS image"),
    ("compatible features", "v1", superblock(8, "I", 8), "unknown compatible features 0x8"),
    ("block size", "v1", superblock(12, "B", 11), "blocks of 2\\^11"),
    ("superblock slots", "v1", superblock(13, "B", 1), "extra superblock slots"),
    ("build nanoseconds", "v1", superblock(32, "I", 10**9), "nanoseconds in its build time"),
    ("block count", "v1", superblock(36, "I", 8), "8 blocks announced"),
    ("metadata start", "v1", superblock(40, "I", 1), "metadata begins at block 1"),
    ("shared start", "v1", superblock(44, "I", 10), "shared attributes begin at block 10"),
    ("features", "v1", superblock(80, "I", 8), "unknown features 0x8"),
    ("compression", "v1", superblock(84, "H", 1), "compression algorithms"),
    ("devices", "v1", superblock(86, "H", 1), "extra devices"),
    ("directory blocks", "v1", superblock(90, "B", 1), "directory blocks"),
    ("prefixes", "v1", superblock(91, "B", 1), "long attribute prefixes"),
    ("packed inode", "v1", superblock(96, "Q", 1), "packed inode"),
    ("reserved filter", "v1", superblock(104, "B", 1), "reserved attribute filter"),
    ("inode count", "v1", superblock(16, "Q", 9), "9 inodes announced, 285 found"),
    ("root outside", "v1", superblock(14, "H", 0xFFFF), "lies outside the image"),
    ("root is a file", "v1", lambda image: image.put(1038, "H", image.nid("/usr/inline")), "is not a directory"),
    # inodes
    ("nid outside", "v1", dirent("/usr/inline", 0, "Q", 1 << 62), "lies outside the image"),
    ("extended inode at the end", "v1", replaced("/usr/inline", b"\1", BLOCK - 32), "lies outside the image"),
    ("data layout", "v1", field("/usr/inline", 0, "H", 3), "unknown data layout 1"),
    ("format bits", "v1", field("/usr/inline", 0, "H", 0x14), "unknown data layout"),
    ("no attributes", "v1", replaced("/usr/inline", compact(0, REGULAR, 0, attributes())), "attributes that has none"),
    ("xattr count", "v1", field("/usr/inline", 2, "H", 0xFFFF), "is cut short"),
    ("nanoseconds", "v1", field("/usr/a", 40, "I", 10**9), "a time with 1000000000 nanoseconds"),
    ("nanoseconds in layout 2", "v2", field("/usr/a", 40, "I", 1), "a time with 1 nanoseconds"),
    ("build time in layout 2", "v2", lambda image: (
        superblock(32, "I", 1)(image), replaced("/usr/empty", compact(0, REGULAR, 0))(image)
    ), "a time with 1 nanoseconds"),
    ("tail over a boundary", "v1", replaced("/usr/inline", compact(2, REGULAR, 33) + bytes(BLOCK), BLOCK - 64),
     "crosses a block boundary"),
    ("symlink over a boundary", "v1", replaced("/usr/link", compact(2, LINK, 3) + b"abc", BLOCK - 32),
     "symlink .* crosses a block boundary"),
    ("device with data", "v1", field("/dev/block", 8, "I", 1), "has data"),
    ("entry of another type", "v1", dirent("/usr/inline", 10, "B", 7), "its entry has type 7"),
    ("inode of another type", "v1", field("/usr/inline", 4, "H", 0o10644), "its entry has type 1"),
    ("no type", "v1", field("/usr/inline", 4, "H", 0o644), "its entry has type 1"),
    ("blocks outside", "v1", field("/usr/block", 16, "I", 0xFFFFFFF0), "lies outside the image"),
    ("huge file", "v2", field("/usr/inline", 8, "Q", 1 << 63), "lies outside the image"),
    # external files
    ("chunk in the image", "v1", lambda image: image.put(image.tail(image.inode("/usr/a")), "I", 1), "chunk inside"),
    ("chunk in layout 2", "v2", lambda image: image.put(image.tail(image.inode("/usr/a")), "I", 1), "chunk inside"),
    ("chunk format", "v1", field("/usr/a", 16, "I", 0x20), "unknown chunk format 0x20"),
    ("chunk format above", "v1", field("/usr/a", 16, "I", 0x10000), "unknown chunk format 0x10000"),
    ("chunk format in layout 2", "v2", field("/usr/a", 16, "I", 30), "unknown chunk format 0x1e"),
    ("too many chunks", "v1", field("/usr/a", 8, "Q", 1 << 62), "chunks, more than 1024"),
    ("directory in chunks", "v1", field("/usr", 0, "H", 9), "is in chunks"),
    ("symlink in chunks", "v1", replaced("/usr/link", compact(4, LINK, 3)), "is in chunks"),
    ("chunks, not external", "v1", replaced("/usr/inline", compact(4, REGULAR, 9)), "not an external file"),
    ("external, no chunks", "v1", replaced(
        "/usr/inline", compact(0, REGULAR, 0, attributes((4, b"overlay.metacopy", b"")))
    ), "attributes of overlayfs but is not external"),
    ("metacopy version", "v1", metacopy_byte(0, 1), "malformed metacopy"),
    ("metacopy length", "v1", metacopy_byte(1, 68), "malformed metacopy"),
    ("metacopy flags", "v1", metacopy_byte(2, 1), "malformed metacopy"),
    ("metacopy algorithm", "v1", metacopy_byte(3, 2), "malformed metacopy"),
    ("short metacopy", "v1", replaced(
        "/usr/inline", compact(4, REGULAR, 0, attributes((4, b"overlay.metacopy", b"\0\3\0")))
    ), "malformed metacopy"),
    ("two algorithms", "v1", replaced(
        "/usr/inline",
        compact(4, REGULAR, 0, attributes((4, b"overlay.metacopy", b"\0\x44\0\2" + bytes(64)))),
    ), "by sha512, not by sha256"),
    ("relative redirect", "v1", text("/usr/a", b"overlay.redirect/", b"overlay.redirectx"), "malformed redirect"),
    ("NUL in redirect", "v1", text("/usr/elsewhere", b"/some/where", b"/some\0where"), "malformed redirect"),
    ("redirect to the root", "v1", replaced("/usr/inline", compact(
        4, REGULAR, 0, attributes((4, b"overlay.metacopy", b""), (4, b"overlay.redirect", b"/"))
    )), "malformed redirect"),
    ("long redirect", "v1", replaced("/usr/inline", compact(
        4, REGULAR, 0, attributes((4, b"overlay.metacopy", b""), (4, b"overlay.redirect", b"/" * 4097))
    )), "malformed redirect"),
    ("redirect elsewhere in layout 2", "v2", text("/usr/a", b"overlay.redirect/ca", b"overlay.redirect/cb"),
     "another object than that of its digest"),
    # directories
    ("slash in a name", "v1", renamed("/usr/acl", b"a/l"), "invalid name among \\[b'a/l'\\]"),
    ("NUL in a name", "v1", renamed("/usr/acl", b"a\0l"), "invalid name among"),
    ("names out of order", "v1", renamed("/usr/a", b"c"), "not in order, or not unique: b'acl'"),
    ("a name twice", "v1", renamed("/usr/copy1", b"copy2"), "not in order, or not unique: b'copy2'"),
    ("long name", "v1", lambda image: image.put(
        image.entry("/usr"), "Q", image.grow(compact(2, 0o40755, 12 + 256, nlink=2) + listing((b"n" * 256, 0, 1)))
    ), "an invalid name among"),
    ("no entries", "v1", dot("/usr", ".", 8, "H", 0), "names begin at 0"),
    ("uneven dirents", "v1", dot("/usr", ".", 8, "H", 13), "names begin at 13"),
    ("names outside", "v1", dot("/usr", ".", 8, "H", 12 * 300), "names begin at 3600"),
    ("short block", "v1", field("/usr", 8, "I", 11), "holds no entry"),
    ("name goes back", "v1", dirent("/usr/a", 8, "H", 12), "invalid name among"),
    ("name outside", "v1", dirent("/usr/a", 8, "H", 0xFFF0), "invalid name among"),
    ("no dot", "v1", dot_renamed("/usr", ".", b"-"), "no entry '.'"),
    ("no dots", "v1", dot_renamed("/usr", "..", b".-"), "no entry '..'"),
    ("dot elsewhere", "v1", dot("/usr", ".", 0, "Q", 36), "'.' leads to inode 36"),
    ("dots elsewhere", "v1", dot("/usr", "..", 0, "Q", 37), "'..' leads to inode 37"),
    ("dot no directory", "v1", dot("/usr", ".", 10, "B", 1), "not marked as a directory"),
    ("directory twice", "v1", leads_to("/dev", "/usr"), "has two names"),
    ("directory in itself", "v1", leads_to("/gone/deep", "/gone"), "has two names"),
    ("directory under the root", "v1", leads_to("/gone/deep", "/"), "has two names"),
    ("directory as a file", "v1", leads_to("/usr/inline", "/usr"), "its entry has type 1"),
    ("directory links", "v1", field("/usr", 44, "I", 3), "0 subdirectories but 3 links"),
    ("directory end", "v1", replaced_directory("/dev", b"", layout=0, size=100), "ends inside a block"),
    ("redirected directory", "v1", replaced_directory("/dev", attributes((4, b"overlay.redirect", b"/x"))),
     "has attributes of overlayfs"),
    ("opaque directory", "v1", replaced_directory("/dev", attributes((4, b"overlay.opaque", b"y"))),
     "has attributes of overlayfs"),
    ("type differs between links", "v1", dirent("/many/name-007-" + "x" * 30, 10, "B", 7), "the types 1 and 7"),
    ("more links than names", "v2", field("/usr/linked", 44, "I", 3), "has 2 names but 3 links"),
    ("more names than links", "v2", field("/usr/linked", 44, "I", 1), "has 2 names but 1 links"),
    ("links of a plain file", "v2", field("/usr/a", 44, "I", 2), "has 1 names but 2 links"),
    ("no stub", "v1", renamed("/00", b"0!"), "lacks a name between"),
    ("native whiteout", "v1", field("/dev/char", 16, "I", 0), "a whiteout b'char' that is not escaped"),
    # attributes
    ("shared count", "v1", lambda image: image.put(image.body(image.inode("/usr/inline")) + 4, "B", 255),
     "255 shared attributes in an area"),
    ("attribute name length", "v1", lambda image: image.put(image.find("/usr/inline", b"capability") - 4, "B", 255),
     "an attribute is cut short"),
    ("attribute value length", "v1", lambda image: image.put(image.find("/usr/inline", b"capability") - 2, "H", 999),
     "an attribute is cut short"),
    ("attribute index", "v1", lambda image: image.put(image.find("/usr/inline", b"capability") - 3, "B", 7),
     "unknown index 7"),
    ("attribute name with NUL", "v1", text("/usr/inline", b"capability", b"cap\0bility"), "invalid attribute name"),
    ("attribute without name", "v1", replaced("/usr/inline", compact(0, REGULAR, 0, attributes((0, b"", b"v")))),
     "invalid attribute name b''"),
    ("long attribute name", "v1", replaced("/usr/inline", compact(0, REGULAR, 0, attributes((1, b"n" * 251, b"")))),
     "invalid attribute name"),
    ("attribute under a wrong index", "v1", replaced(
        "/usr/inline", compact(0, REGULAR, 0, attributes((0, b"user.x", b"")))
    ), "not stored under the index of its prefix"),
    ("name filter", "v1", lambda image: image.put(image.body(image.inode("/usr/inline")), "I", 0xFFFFFFFF),
     "the name filter hides an attribute"),
    ("name filter of a plain file", "v1", lambda image: image.put(image.body(image.inode("/usr/b")), "I", 0xFFFFFFFF),
     "the name filter hides an attribute"),
    ("shared attribute outside", "v1", lambda image: image.put(
        image.body(image.inode("/usr/copy1")) + 12, "I", 0x3FFFFFFF
    ), "an attribute is cut short"),
    ("overlay attribute", "v1", text("/overlay", b"overlay.overlay.opaque", b"overlay.0verlay.opaque"),
     "composefs does not write the attribute b'trusted.overlay.0verlay.opaque'"),
    ("overlay attribute twice", "v1", replaced("/usr/inline", compact(
        4, REGULAR, 0, attributes((4, b"overlay.metacopy", b""), (4, b"overlay.metacopy", b""))
    )), "two attributes trusted.overlay.metacopy"),
]  # fmt: skip

# What no reference depends upon, only the reader of trees looks at.
CONTENT_DAMAGE: list[tuple[str, str, Callable[[Editor], Any], str]] = [
    ("content of 5001 bytes", "v1", field("/usr/block", 8, "I", 5001), "holds 5001 bytes, more than 5000"),
    ("content of 513 bytes", "v2", replaced("/usr/inline", compact(2, REGULAR, 513) + bytes(513)), "more than 512"),
    ("target of 4096 bytes", "v1", field("/usr/long", 8, "I", 4096), "holds 4096 bytes, more than 4095"),
    ("target of 1025 bytes", "v2", replaced("/usr/link", compact(2, LINK, 1025) + b"t" * 1025), "more than 1024"),
    ("no target", "v1", replaced("/usr/link", compact(0, LINK, 0)), "invalid target"),
    ("NUL in a target", "v1", replaced("/usr/link", compact(2, LINK, 3) + b"a\0b"), "invalid target"),
    ("attribute twice", "v1", replaced(
        "/usr/inline", compact(0, REGULAR, 0, attributes((1, b"x", b"1"), (1, b"x", b"2")))
    ), "two attributes b'user.x'"),
    ("attribute of a directory twice", "v1", replaced_directory(
        "/gone/deep", attributes((1, b"x", b""), (1, b"x", b""))
    ), "two attributes b'user.x'"),
]  # fmt: skip


def damaged(name: str, edit: Callable[[Editor], Any]) -> bytes:
    image = Editor(name)
    before = bytes(image.data)
    edit(image)
    assert image.data != before
    return bytes(image.data)


@pytest.mark.parametrize(("name", "edit", "reason"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
@pytest.mark.parametrize("read", [image_to_tree, image_object_ids, image_info])
def test_damage_is_refused(read: Any, name: str, edit: Callable[[Editor], Any], reason: str) -> None:
    image = damaged(name, edit)
    with pytest.raises(ErofsError, match=reason):
        read(image)


@pytest.mark.parametrize(
    ("name", "edit", "reason"), [row[1:] for row in CONTENT_DAMAGE], ids=[row[0] for row in CONTENT_DAMAGE]
)
def test_damaged_content_is_refused_but_its_references_are_found(
    name: str, edit: Callable[[Editor], Any], reason: str
) -> None:
    image = damaged(name, edit)
    with pytest.raises(ErofsError, match=reason):
        image_to_tree(image)
    assert image_object_ids(image) == image_object_ids((IMAGES / f"{name}.img").read_bytes())


def test_errors_tell_the_offset() -> None:
    image = Editor("v1")
    offset = image.inode("/usr/inline")
    image.put(offset, "H", 3)
    with pytest.raises(ErofsError) as caught:
        image_to_tree(bytes(image.data))
    assert caught.value.offset == offset


@pytest.mark.parametrize("read", [image_to_tree, image_object_ids])
@pytest.mark.parametrize(("name", "other"), [("v1", Algorithm.SHA512), ("v2-sha512", Algorithm.SHA256)])
def test_objects_of_another_algorithm_are_an_error(read: Any, name: str, other: Algorithm) -> None:
    with pytest.raises(ErofsError, match=f"not by {other.value}"):
        read((IMAGES / f"{name}.img").read_bytes(), other)


@pytest.mark.parametrize("read", [image_to_tree, image_object_ids])
def test_image_over_the_limit_is_refused(read: Any) -> None:
    image = (IMAGES / "v2.img").read_bytes()
    with pytest.raises(ErofsError, match="longer than the limit"):
        read(image, limit=len(image) - 1)
    assert read(image, limit=len(image))


@pytest.mark.parametrize("name", ["v0", "v1", "v2", "v2-sha512"])
def test_image_cut_short_anywhere_is_refused(name: str) -> None:
    image = (IMAGES / f"{name}.img").read_bytes()
    for length in range(len(image)):
        with pytest.raises(ErofsError):
            image_to_tree(image[:length])


@pytest.mark.parametrize("name", ["v0", "v1", "v2", "v2-sha512"])
def test_image_cut_short_anywhere_with_a_matching_superblock_gives_no_other_error(name: str) -> None:
    image = bytearray((IMAGES / f"{name}.img").read_bytes())
    for blocks in range(1, len(image) // BLOCK):
        struct.pack_into("<I", image, 1024 + 36, blocks)
        with pytest.raises(ErofsError):
            image_to_tree(bytes(image[: blocks * BLOCK]))


def with_root(inodes: Callable[[int], tuple[bytes, list[tuple[bytes, int, int]], int]]) -> bytes:
    """An image of layout 2 with a new root, whose entries *inodes* gives by the number of the first inode."""
    image = Editor("v2")
    first = len(image.data) // 32
    content, entries, subdirectories = inodes(first)
    root = image.grow(content) + (len(content) + 31) // 32 if content else image.grow(b"")
    assert root < 0xFFFF
    tail = listing(*sorted([(b".", root, 2), (b"..", root, 2), *entries]))
    del image.data[32 * root :]
    image.grow(compact(2, 0o40755, len(tail), nlink=2 + subdirectories) + tail)
    image.put(1038, "H", root)
    return bytes(image.data)


def chain(first: int, depth: int) -> tuple[bytes, list[tuple[bytes, int, int]], int]:
    """Directories inside each other, 128 bytes each; the first one's parent follows the last."""
    root = first + 4 * depth
    content = b""
    for level in range(depth):
        nid, above = first + 4 * level, first + 4 * (level - 1) if level else root
        below = [(b"d", nid + 4, 2)] if level < depth - 1 else []
        tail = listing((b".", nid, 2), (b"..", above, 2), *below)
        content += (compact(2, 0o40755, len(tail), nlink=2 + len(below)) + tail).ljust(128, b"\0")
    return content, [(b"d", first, 2)], 1


@pytest.mark.parametrize("read", [image_to_tree, image_object_ids])
@pytest.mark.parametrize(
    ("depth", "reason"), [(2046, "inodes announced, 2047 found"), (2048, "nested deeper than 2048")]
)
def test_nesting_is_bounded(read: Any, depth: int, reason: str) -> None:
    image = with_root(lambda first: chain(first, depth))
    with pytest.raises(ErofsError, match=reason):
        read(image)


def test_files_that_share_blocks_are_refused() -> None:
    def files(first: int) -> tuple[bytes, list[tuple[bytes, int, int]], int]:
        content = compact(0, REGULAR, 512, address=1) * 50
        return content, [(b"%02d" % i, first + i, 1) for i in range(50)], 0

    image = with_root(files)
    with pytest.raises(ErofsError, match="structures of the image overlap"):
        image_to_tree(image)


def test_attributes_that_overlap_are_refused() -> None:
    area = attributes((1, b"x", b"v" * 3000))

    def files(first: int) -> tuple[bytes, list[tuple[bytes, int, int]], int]:
        # Each inode but the last one is the whole area of attributes of the one before.
        head = compact(0, REGULAR, 0, area)[:32]
        value = (head + bytes(12) + struct.pack("<BBH", 1, 1, 3004) + b"x" + bytes(15)) * 20
        return value + bytes(4096), [(b"%02d" % i, first + 2 * i, 1) for i in range(20)], 0

    image = with_root(files)
    for read in (image_to_tree, image_object_ids):
        with pytest.raises(ErofsError, match=r"overlap|cut short"):
            read(image)
