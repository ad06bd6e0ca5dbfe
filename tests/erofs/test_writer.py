"""The image writer: structure, determinism, dialects, and what it refuses."""

from __future__ import annotations

import stat
import struct
import tracemalloc
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composefs_async.digest import Algorithm
from composefs_async.erofs import format as erofs
from composefs_async.erofs.format import DEPTH_MAX
from composefs_async.erofs.writer import Dialect, build_image, choose_version, image_pieces
from composefs_async.erofs.writer.blocks import split_names, with_dots
from composefs_async.errors import ComposefsError, ErofsError
from composefs_async.tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.dumpwriter import write_dump

PROPERTY = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=25, deadline=None)
LAYOUTS = [(0, Dialect.C), (1, Dialect.C), (0, Dialect.RUST), (1, Dialect.RUST), (2, Dialect.RUST)]
DIGEST = b"\x5a" * 32


def directory(children: dict[bytes, Inode] | None = None, xattrs: Xattrs = ()) -> Directory:
    return Directory(0o40755, 2, 0, 0, 0, xattrs, children)


def inline(content: bytes = b"x", xattrs: Xattrs = (), mode: int = 0o100644, mtime_ns: int = 0) -> InlineFile:
    return InlineFile(mode, 1, 0, 0, mtime_ns, xattrs, content)


def external(size: int = 5, digest: bytes | None = DIGEST, payload: bytes | None = None) -> ExternalFile:
    return ExternalFile(0o100644, 1, 0, 0, 0, (), size, digest, payload)


def symlink(target: bytes) -> Symlink:
    return Symlink(0o120777, 1, 0, 0, 0, (), target)


def whiteout(mode: int = 0o20000) -> Special:
    return Special(mode, 1, 0, 0, 0)


def image_or_error(root: Directory, version: int, dialect: Dialect) -> bytes | str:
    try:
        return build_image(root, version=version, dialect=dialect)
    except ErofsError as error:
        return str(error)


# -- properties --------------------------------------------------------------------------------


@PROPERTY
@given(data=st.data())
@pytest.mark.parametrize(("version", "dialect"), LAYOUTS)
def test_the_same_tree_gives_the_same_image(
    trees: st.SearchStrategy[Directory], version: int, dialect: Dialect, data: st.DataObject
) -> None:
    root = data.draw(trees)
    before = list(write_dump(root))
    image = image_or_error(root, version, dialect)
    assert image_or_error(root, version, dialect) == image
    assert list(write_dump(root)) == before, "the writer changed the tree"
    copy = parse_dump(b"".join(before))
    if dialect is Dialect.RUST:
        assert image_or_error(copy, version, dialect) == image


@PROPERTY
@given(data=st.data())
@pytest.mark.parametrize(("version", "dialect"), LAYOUTS)
def test_every_inode_is_where_its_directory_says(
    trees: st.SearchStrategy[Directory], version: int, dialect: Dialect, data: st.DataObject
) -> None:
    image = image_or_error(data.draw(trees), version, dialect)
    if isinstance(image, str):
        assert "a whiteout with several names" in image
        return
    superblock = erofs.SUPERBLOCK.unpack_from(image, erofs.SUPERBLOCK_OFFSET)
    assert len(image) == superblock[9] * erofs.BLOCK_SIZE
    seen, pending = {superblock[5]}, [superblock[5]]
    while pending:
        nid = pending.pop()
        for child, kind in entries(image, nid) if stat.S_ISDIR(mode_of(image, nid)) else []:
            assert erofs.FILE_TYPES[stat.S_IFMT(mode_of(image, child))] == kind
            if child not in seen:
                seen.add(child)
                pending.append(child)
    assert len(seen) == superblock[6]


def mode_of(image: bytes, nid: int) -> int:
    return int.from_bytes(image[nid * 32 + 4 : nid * 32 + 6], "little")


def entries(image: bytes, nid: int) -> list[tuple[int, int]]:
    """Nid and type of every entry of a directory, read as the kernel does."""
    at = nid * erofs.SLOT
    extended = image[at] & 1
    fields = (erofs.EXTENDED_INODE if extended else erofs.COMPACT_INODE).unpack_from(image, at)
    size, address = (fields[3], fields[4]) if extended else (fields[4], fields[5])
    body = at + (64 if extended else 32) + (8 + 4 * fields[1] if fields[1] else 0)
    full, tail = divmod(size, erofs.BLOCK_SIZE)
    blocks = [image[(address + number) * erofs.BLOCK_SIZE :][: erofs.BLOCK_SIZE] for number in range(full)]
    found = []
    for block in [*blocks, image[body : body + tail]] if tail else blocks:
        columns = erofs.dirents(int.from_bytes(block[8:10], "little") // erofs.DIRENT_SIZE).unpack_from(block)
        found += list(zip(columns[::3], columns[2::3], strict=True))
    return found


@PROPERTY
@given(names=st.sets(st.binary(min_size=1, max_size=255), max_size=60))
def test_directories_are_cut_where_blocks_are_full(names: set[bytes]) -> None:
    ordered = sorted(names - {b".", b".."})
    cuts, tail = split_names(ordered, sum(map(len, ordered)))
    dotted, dot, dots = with_dots(ordered)
    assert dotted == sorted({*ordered, b".", b".."})
    assert (dotted[dot], dotted[dots]) == (b".", b"..")
    costs = [12 + len(name) for name in dotted]
    sizes = [sum(costs[start:end]) for start, end in zip([0, *cuts], [*cuts, len(dotted)], strict=True)]
    assert all(size <= 4096 for size in sizes)
    assert sizes[-1] == tail
    assert tail <= 2048
    assert all(size + costs[cut] > 4096 for size, cut in zip(sizes, cuts, strict=False) if cut < len(dotted))


# -- structure ---------------------------------------------------------------------------------


def test_a_tree_as_deep_as_can_be_read_makes_an_image() -> None:
    root = inner = directory()
    for _ in range(DEPTH_MAX - 1):
        inner.children[b"d"] = inner = directory()
    for version, dialect in LAYOUTS:
        image = build_image(root, version=version, dialect=dialect)
        assert erofs.SUPERBLOCK.unpack_from(image, 1024)[6] == DEPTH_MAX + (256 if version < 2 else 0)


def test_pieces_are_bounded_and_need_little_memory() -> None:
    count = 20_000
    root = directory({b"%06d" % number: external(5, struct.pack("<Q24x", number)) for number in range(count)})
    for version in (1, 2):
        tracemalloc.start()
        sizes = [len(piece) for piece in image_pieces(root, version=version)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert max(sizes) < 1 << 20
        assert sum(sizes) % 4096 == 0
        assert peak < 1024 * count


def test_the_headers_come_first() -> None:
    (piece,) = islice(image_pieces(directory()), 1)
    assert len(piece) == erofs.FIRST_INODE
    assert erofs.COMPOSEFS_HEADER.unpack_from(piece) == (erofs.COMPOSEFS_MAGIC, 1, 0, 1)


@pytest.mark.parametrize(
    ("options", "plain", "with_whiteout"),
    [
        ({}, 0, 1),
        ({"minimum": 0, "maximum": 1}, 0, 1),
        ({"maximum": 1}, 0, 1),
        ({"minimum": 0}, 0, 0),
        ({"maximum": 0}, 0, 0),
        ({"minimum": 1}, 1, 1),
        ({"minimum": 1, "maximum": 1}, 1, 1),
    ],
)
def test_the_version_is_chosen_as_by_mkcomposefs(options: dict[str, int], plain: int, with_whiteout: int) -> None:
    hidden = directory({b"a": directory({b"b": whiteout()})})
    assert choose_version(directory(), **options) == plain
    assert choose_version(hidden, **options) == with_whiteout


# -- dialects ----------------------------------------------------------------------------------


def test_dialects_differ_in_link_counts() -> None:
    root = directory({b"a": inline()})
    root.children[b"b"] = root.children[b"a"]
    counted = directory({b"a": InlineFile(0o100644, 2, 0, 0, 0, (), b"x")})
    counted.children[b"b"] = counted.children[b"a"]
    assert build_image(root) == build_image(counted) == build_image(counted, dialect=Dialect.C)
    assert build_image(root, dialect=Dialect.C) != build_image(root)


def test_dialects_differ_in_the_owner_of_hard_links() -> None:
    lines = [b"/ 0 40755 2 0 0 0 0.0 - - -", b"/a 0 @120000 - - - - 0.0 /c - -", b"/b 0 100644 1 0 0 0 0.0 - - -"]
    root = parse_dump([*lines, b"/c 1 100644 2 0 0 0 0.0 - x -"])
    other = parse_dump([lines[0], b"/a 1 100644 2 0 0 0 0.0 - x -", lines[2], b"/c 0 @120000 - - - - 0.0 /a - -"])
    assert build_image(root) == build_image(other) == build_image(other, dialect=Dialect.C)
    assert build_image(root, dialect=Dialect.C) != build_image(root)


def test_hard_links_without_an_owner_belong_to_the_first_name() -> None:
    file = inline()
    root, marked = directory({b"a": file, b"b": file}), directory({b"a": file, b"b": file})
    marked.links = frozenset([b"a", b"b"])
    assert build_image(marked, dialect=Dialect.C) == build_image(root, dialect=Dialect.C)


def test_dialects_differ_in_payloads_and_empty_files() -> None:
    for one, other in ((external(payload=b"p"), external()), (external(0), inline(b""))):
        first, second = directory({b"a": one}), directory({b"a": other})
        assert (build_image(first) == build_image(second)) == (one.size > 0)
        assert (build_image(first, dialect=Dialect.C) == build_image(second, dialect=Dialect.C)) == (one.size == 0)


@pytest.mark.parametrize(("mtime_ns", "dialect", "wanted"), [(-1, Dialect.C, -1), (-1, Dialect.RUST, 0)])
def test_dialects_differ_in_times_before_1970(mtime_ns: int, dialect: Dialect, wanted: int) -> None:
    image = build_image(directory({b"a": inline(mtime_ns=mtime_ns)}), dialect=dialect)
    fields = erofs.SUPERBLOCK.unpack_from(image, 1024)
    assert fields[7] * 10**9 + fields[8] == wanted


def test_an_acl_is_announced_in_the_header() -> None:
    for name, c, rust in (
        (b"system.posix_acl_access", 1, 1),
        (b"system.posix_acl_accessX", 0, 1),
        (b"user.acl", 0, 0),
    ):
        root = directory({b"a": inline(xattrs=((name, b"v"),))})
        flags = [build_image(root, dialect=dialect)[8] for dialect in (Dialect.C, Dialect.RUST)]
        assert (flags, build_image(root, version=2)[8]) == ([c, rust], 0)


def test_a_whiteout_like_an_added_one_is_not_escaped_for_composefs_rs() -> None:
    alike, other = directory({b"ab": whiteout(0o20644)}), directory({b"ab": whiteout(0o20600)})
    assert build_image(alike) == build_image(directory())
    assert build_image(other) != build_image(directory())
    assert build_image(alike, dialect=Dialect.C) != build_image(directory(), dialect=Dialect.C)


def test_a_file_that_shares_one_overlay_attribute_shares_just_that() -> None:
    unverified = external(digest=None, payload=b"5a/" + b"5a" * 31)
    image = build_image(directory({b"a": external(), b"b": unverified}))
    assert image.count(b"/5a/" + b"5a" * 31) == 1, "the path of both is stored once"
    assert image.count(DIGEST) == 1


def test_more_than_128_shared_attributes_go_inline_for_mkcomposefs() -> None:
    xattrs = tuple(sorted((b"user.%03d" % number, b"v") for number in range(200)))
    root = directory({b"a": inline(xattrs=xattrs), b"b": inline(xattrs=xattrs)})
    assert build_image(root, dialect=Dialect.C).count(b"199v") == 3
    assert build_image(root).count(b"199v") == 1


# -- what is refused ---------------------------------------------------------------------------


def loop() -> Directory:
    root = directory()
    root.children[b"a"] = root
    return root


def twice() -> Directory:
    inner = directory()
    return directory({b"a": inner, b"b": inner})


def many_shared() -> Directory:
    xattrs = tuple(sorted((b"user.%03d" % number, b"v") for number in range(256)))
    return directory({b"a": inline(xattrs=xattrs), b"b": inline(xattrs=xattrs)})


def linked_whiteout() -> Directory:
    gone = whiteout()
    return directory({b"a": gone, b"b": gone})


C, R, BOTH = [(1, Dialect.C)], [(1, Dialect.RUST)], [(1, Dialect.C), (1, Dialect.RUST)]
FLAT = [(2, Dialect.RUST)]
ALL = BOTH + FLAT
REFUSED = {
    "loop": (ALL, loop(), "a directory stands under two names"),
    "directory twice": (ALL, twice(), "a directory stands under two names"),
    "empty name": (ALL, directory({b"": inline()}), "a name that no file can have: b''"),
    "dots": (ALL, directory({b"..": inline()}), "a name that no file can have: b'..'"),
    "slash": (ALL, directory({b"a/b": inline()}), "a name that no file can have: b'a/b'"),
    "nul": (ALL, directory({b"a\0": inline()}), r"a name that no file can have: b'a\x00'"),
    "long name": (ALL, directory({b"n" * 256: inline()}), f"a name that no file can have: b'{'n' * 256}'"),
    "empty target": (ALL, directory({b"a": symlink(b"")}), "a target of 0 bytes, not 1 to"),
    "long target": (BOTH, directory({b"a": symlink(b"t" * 4096)}), "a target of 4096 bytes, not 1 to 4095"),
    "long target in layout 2": (FLAT, directory({b"a": symlink(b"t" * 1025)}), "a target of 1025 bytes, not 1 to 1024"),
    "content": (BOTH, directory({b"a": inline(b"x" * 5001)}), "5001 bytes inline, at most 5000"),
    "content in layout 2": (FLAT, directory({b"a": inline(b"x" * 513)}), "513 bytes inline, at most 512"),
    "large file": (BOTH, directory({b"a": external(2**53 + 1)}), "9007199254740993 bytes, at most 9007199254740992"),
    "enormous file": (ALL, directory({b"a": external(1 << 70)}), "bytes, at most|size 1180591620717411303424 is not"),
    "negative size": (ALL, directory({b"a": external(-1)}), "-1 bytes, at most|size -1 is not between"),
    "digest": (ALL, directory({b"a": external(5, b"x" * 64)}), "its digest is not one of fsverity-sha256-12"),
    "mode of another kind": (ALL, directory({b"a": inline(mode=0o40755)}), "mode 40755 of a InlineFile"),
    "large mode": (ALL, directory({b"a": inline(mode=0o300644)}), "mode 300644 of a InlineFile"),
    "owner": (ALL, directory({b"a": InlineFile(0o100644, 1, 1 << 32, 0, 0)}), "owner 4294967296 is not between"),
    "group": (ALL, directory({b"a": InlineFile(0o100644, 1, 0, -1, 0)}), "group -1 is not between"),
    "links": (C, directory({b"a": InlineFile(0o100644, 1 << 32, 0, 0, 0)}), "link count 4294967296 is not between"),
    "device": (ALL, directory({b"a": Special(0o60600, 1, 0, 0, 0, (), 1 << 32)}), "device number 4294967296 is not"),
    "time": (ALL, directory({b"a": inline(mtime_ns=1 << 100)}), "does not fit into 64 bits of seconds"),
    "order of attributes": (
        ALL,
        directory({b"a": inline(xattrs=((b"user.b", b""), (b"user.a", b"")))}),
        "attributes that are not in order, or not unique",
    ),
    "attribute twice": (ALL, directory(xattrs=((b"a", b""), (b"a", b"x"))), "attributes that are not in order"),
    "attribute without name": (ALL, directory(xattrs=((b"", b""),)), "an attribute that no file can have: b''"),
    "attribute name": (ALL, directory(xattrs=((b"n" * 256, b""),)), "an attribute that no file can have: b'nnn"),
    "attribute value": (R + FLAT, directory(xattrs=((b"a", b"v" * 65536),)), "b'a' with 65536 bytes"),
    "attributes": (C, directory(xattrs=((b"a", b"v" * 32748),)), "attributes of 32768 bytes, at most 32767"),
    "area": (
        R + FLAT,
        directory(xattrs=tuple((b"a%d" % number, b"v" * 65000) for number in range(5))),
        "attributes of 3250[0-9]{2} bytes, at most 262148",
    ),
    "path of an object": (
        C,
        directory({b"a": external(payload=b"p" * 4096)}),
        "an object at a path that cannot be: b'p",
    ),
    "NUL in the path": (
        ALL,
        directory({b"a": external(digest=None, payload=b"p\0")}),
        r"a path that cannot be: b'p\x00'",
    ),
    "shared attributes": (R + FLAT, many_shared(), "256 attributes that other files have, at most 255"),
    "whiteout with several names": (R, linked_whiteout(), "a whiteout with several names"),
}
CASES = [
    pytest.param(root, reason, version, dialect, id=f"{name}-{version}-{dialect.value}")
    for name, (layouts, root, reason) in REFUSED.items()
    for version, dialect in layouts
]


@pytest.mark.parametrize(("root", "reason", "version", "dialect"), CASES)
def test_what_no_image_can_hold_is_refused(root: Directory, reason: str, version: int, dialect: Dialect) -> None:
    with pytest.raises(ErofsError, match=reason.replace("'", ".").replace("\\", ".") if "|" not in reason else reason):
        build_image(root, version=version, dialect=dialect)


def test_errors_name_the_path() -> None:
    root = directory({b"etc": directory({b"link\xff": symlink(b"")})})
    with pytest.raises(ErofsError) as caught:
        build_image(root)
    assert (caught.value.name, caught.value.offset) == ("/etc/link\\xff", None)
    assert str(caught.value) == "/etc/link\\xff: a target of 0 bytes, not 1 to 4095"


@pytest.mark.parametrize("version", [-1, 3])
def test_unknown_layouts_are_refused(version: int) -> None:
    with pytest.raises(ComposefsError, match=f"there is no layout {version}"):
        build_image(directory(), version=version)
    with pytest.raises(ComposefsError, match="there is no layout 2, only 0 and 1"):
        choose_version(directory(), minimum=2)


def test_digests_of_the_other_algorithm_are_refused() -> None:
    root = directory({b"a": external(digest=b"x" * 64)})
    assert build_image(root, Algorithm.SHA512).count(b"x" * 64) == 1
    with pytest.raises(ErofsError, match="its digest is not one of fsverity-sha256-12"):
        build_image(root, Algorithm.SHA256)
