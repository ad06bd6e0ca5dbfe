"""Trees from layers: what hides, replaces, links and is made without being listed, and what is refused."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefs_async.digest import ObjectId
from composefs_async.errors import OciError
from composefs_async.oci import filesystem
from composefs_async.oci.filesystem import TreeBuilder, XattrFilter, tree_from_layers
from composefs_async.oci.tar.members import EntryType, TarEntry
from composefs_async.tree.inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from composefs_async.tree.walk import find, walk

TYPES = {"d": EntryType.DIRECTORY, "f": EntryType.FILE, "l": EntryType.SYMLINK, "h": EntryType.HARDLINK}
CAPABILITY = (b"security.capability", b"c")
LABEL = (b"security.selinux", b"s")
USER = (b"user.x", b"u")


def entry(
    path: bytes,
    kind: EntryType = EntryType.FILE,
    content: bytes | ObjectId | None = None,
    *,
    link: bytes = b"",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime_ns: int = 0,
    rdev: int = 0,
    xattrs: tuple[tuple[bytes, bytes], ...] = (),
) -> TarEntry:
    return TarEntry(path, kind, mode, uid, gid, size, mtime_ns, rdev, link, xattrs, content, 0)


def parse(line: str) -> TarEntry:
    """``d PATH``, ``f PATH CONTENT``, ``l PATH TARGET``, ``h PATH TARGET``."""
    kind, path, rest = (*line.encode().split(b" "), b"")[:3]
    kind_of = TYPES[kind.decode()]
    is_file = kind_of is EntryType.FILE
    return entry(path, kind_of, rest if is_file else None, link=b"" if is_file else rest)


def shape(root: Directory) -> list[str]:
    """The tree in the same form, in byte order of paths; a further name of an inode is a hard link."""
    lines = []
    first: dict[Inode, bytes] = {}
    for absolute, inode in sorted(walk(root)):
        path = absolute[1:]
        if isinstance(inode, Directory):
            lines.append(b"d " + path)
        elif first.setdefault(inode, path) != path:
            lines.append(b"h %b %b" % (path, first[inode]))
        elif isinstance(inode, InlineFile):
            lines.append(b"f %b %b" % (path, inode.content))
        else:
            assert isinstance(inode, Symlink)
            lines.append(b"l %b %b" % (path, inode.target))
    return [line.decode().rstrip() for line in lines[1:]]


def build(*layers: list[str]) -> list[str]:
    return shape(tree_from_layers([map(parse, layer) for layer in layers], None))


TREES: dict[str, tuple[list[list[str]], list[str]]] = {
    "nothing": ([], []),
    "all kinds": (
        [["d a", "f a/f x", "l a/l f", "h a/h a/f"]],
        ["d a", "f a/f x", "h a/h a/f", "l a/l f"],
    ),
    "upper over lower": ([["f a 1", "f b 1"], ["f a 2"]], ["f a 2", "f b 1"]),
    "last of equal names": ([["f a 1", "f a 2"]], ["f a 2"]),
    "directory over directory": ([["d a", "f a/b 1"], ["d a", "f a/c 2"]], ["d a", "f a/b 1", "f a/c 2"]),
    "file over directory": ([["d a", "f a/b 1"], ["f a 2"]], ["f a 2"]),
    "directory over file": ([["f a 1"], ["d a"]], ["d a"]),
    "symlink over directory": ([["d a", "f a/b 1"], ["l a x"]], ["l a x"]),
    "directory again after something else": ([["d a", "f a/b 1", "f a 2", "d a", "f a/c 3"]], ["d a", "f a/c 3"]),
    "odd spellings of a path": (
        [["d ./a", "f ./a//b 1", "f a/./c 2", "d a/d/.", "f a/d/./e 3"]],
        ["d a", "f a/b 1", "f a/c 2", "d a/d", "f a/d/e 3"],
    ),
    "unlisted parents": ([["f a/b/c 1", "d x/y"]], ["d a", "d a/b", "f a/b/c 1", "d x", "d x/y"]),
    "parents in a lower layer": ([["d a", "d a/b"], ["f a/b/c 1"]], ["d a", "d a/b", "f a/b/c 1"]),
    "end in two dots": ([["d a", "d a/..", "d .."]], ["d a"]),
    # -- whiteouts
    "whiteout of a file": ([["d a", "f a/b 1", "f a/c 1"], ["d a", "f a/.wh.b"]], ["d a", "f a/c 1"]),
    "whiteout of a directory": ([["d a", "f a/b 1", "f c 1"], ["f .wh.a"]], ["f c 1"]),
    "whiteout of any type": ([["f a 1", "f b 1"], ["d .wh.a", "l .wh.b x"]], []),
    "whiteout of nothing": ([["f a 1"], ["f .wh.b", "f no/where/.wh.c", "f nor/.wh..wh..opq"]], ["f a 1"]),
    "whiteouts that name nothing": ([["f a 1"], ["f .wh.", "f .wh..wh.a", "f .wh..", "f .wh..."]], ["f a 1"]),
    "whiteout, then a new one": ([["d a", "f a/b 1"], ["f .wh.a", "d a", "f a/c 2"]], ["d a", "f a/c 2"]),
    "new one, then its whiteout": ([["f a 1"], ["f a 2", "f .wh.a"]], ["f a 2"]),
    "new directory, then its whiteout": (
        [["d a", "f a/old 1", "d a/sub", "f a/sub/old 1"], ["d a", "d a/sub", "f a/sub/new 2", "f .wh.a"]],
        ["d a", "d a/sub", "f a/sub/new 2"],
    ),
    "new file in an old directory, then its whiteout": (
        [["d a", "f a/old 1"], ["f a/new 2", "f .wh.a"]],
        ["d a", "f a/new 2"],
    ),
    "whiteout in the first layer": ([["f a 1", "f .wh.a", "f .wh..wh..opq"]], ["f a 1"]),
    "whiteout of the layer before last": ([["f a 1"], ["f b 2"], ["f .wh.a", "f .wh.b"]], []),
    "back in a later layer": ([["f a 1"], ["f .wh.a"], ["f a 3"]], ["f a 3"]),
    # -- opaque directories
    "opaque first": (
        [["d a", "f a/old 1"], ["d a", "f a/.wh..wh..opq", "f a/new 2"]],
        ["d a", "f a/new 2"],
    ),
    "opaque last": ([["d a", "f a/old 1"], ["d a", "f a/new 2", "f a/.wh..wh..opq"]], ["d a", "f a/new 2"]),
    "opaque above merged directories": (
        [
            ["d a", "d a/b", "d a/b/c", "f a/b/c/old 1", "f a/b/old 1"],
            ["d a", "d a/b", "d a/b/c", "f a/b/c/new 2", "f a/.wh..wh..opq"],
        ],
        ["d a", "d a/b", "d a/b/c", "f a/b/c/new 2"],
    ),
    "opaque twice": (
        [["f a/old 1"], ["f a/.wh..wh..opq", "f a/new 2", "f a/.wh..wh..opq"]],
        ["d a", "f a/new 2"],
    ),
    "opaque root": ([["f a 1", "d b"], ["f .wh..wh..opq", "f c 2"]], ["f c 2"]),
    "opaque, then something in what it hid": (
        [["f a/b/c 1"], ["f a/.wh..wh..opq", "f a/b/d 2"]],
        ["d a", "d a/b", "f a/b/d 2"],
    ),
    # -- hard links
    "link to a lower layer": ([["f a 1"], ["h b a"]], ["f a 1", "h b a"]),
    "rename by link and whiteout": ([["f a 1"], ["h b a", "f .wh.a"]], ["f b 1"]),
    "link over a file": ([["f a 1", "f b 2", "h b a"]], ["f a 1", "h b a"]),
    "link to itself": ([["f a 1", "h a a"]], ["f a 1"]),
    "link to a symlink": ([["l a x", "h b a"]], ["l a x", "h b a"]),
    "link over the directory it leads into": ([["d a", "f a/b 1", "h a a/b"]], ["f a 1"]),
    "target changed later": ([["f a 1", "h b a"], ["f a 2"]], ["f a 2", "f b 1"]),
    # -- paths through something that is no directory
    "whiteout below a symlink of its layer": (
        [["d b", "f b/x 1"], ["l a b", "f a/.wh.x"]],
        ["l a b", "d b", "f b/x 1"],
    ),
    "whiteout below a symlink that was followed": (
        [["d b", "f b/x 1"], ["l a b", "f a/y 2", "f a/.wh.x", "f a/.wh..wh..opq"]],
        ["l a b", "d b", "f b/x 1", "f b/y 2"],
    ),
    "whiteout below a lower symlink": ([["d b", "f b/x 1", "l a b"], ["f a/.wh.x"]], ["l a b", "d b", "f b/x 1"]),
    "whiteout below a file": ([["f a 1"], ["f a/.wh.x", "f a/.wh..wh..opq", "f a/b/.wh.c"]], ["f a 1"]),
    "opaque below a symlink": ([["d b", "f b/x 1"], ["l a b", "f a/.wh..wh..opq"]], ["l a b", "d b", "f b/x 1"]),
    "below a lower file": ([["f a 1"], ["f a/b/c 2"]], ["d a", "d a/b", "f a/b/c 2"]),
    "below a lower symlink": (
        [["d usr", "d usr/lib", "f usr/lib/f 1", "l lib usr/lib"], ["f lib/g 2"]],
        ["d lib", "f lib/g 2", "d usr", "d usr/lib", "f usr/lib/f 1"],
    ),
    "below a lower file twice": ([["f a 1"], ["f a/b 2", "f a/c 3"]], ["d a", "f a/b 2", "f a/c 3"]),
    "below a symlink of its layer": (
        [["d usr", "d usr/lib", "l lib usr/lib", "f lib/f 1", "d lib/d", "f lib/d/g 2"]],
        ["l lib usr/lib", "d usr", "d usr/lib", "d usr/lib/d", "f usr/lib/d/g 2", "f usr/lib/f 1"],
    ),
    "below a symlink that a higher layer lists again": (
        [["d b", "l a b"], ["l a b", "f a/f 1"]],
        ["l a b", "d b", "f b/f 1"],
    ),
    "below an absolute symlink": ([["d a", "l a/l /b", "f a/l/f 1"]], ["d a", "l a/l /b", "d b", "f b/f 1"]),
    "below a symlink with dots": (
        [["d a", "d a/b", "l a/b/l ../../../.././c/../d/", "f a/b/l/f 1"]],
        ["d a", "d a/b", "l a/b/l ../../../.././c/../d/", "d c", "d d", "f d/f 1"],
    ),
    "below a symlink to the root": ([["l a /", "f a/f 1", "l b ..", "f b/g 2"]], ["l a /", "l b ..", "f f 1", "f g 2"]),
    "below a symlink to nothing": ([["l a b/c", "f a/f 1"]], ["l a b/c", "d b", "d b/c", "f b/c/f 1"]),
    "below links to links": (
        [["l a b", "l b c", "d c", "l c/d /e", "f a/d/f 1"]],
        ["l a b", "l b c", "d c", "l c/d /e", "d e", "f e/f 1"],
    ),
    "40 links": (
        [[*(f"l {n:02} {n + 1:02}" for n in range(39)), "l 39 .", "f 00/f 1"]],
        [*(f"l {n:02} {n + 1:02}" for n in range(39)), "l 39 .", "f f 1"],
    ),
    "a hard link to a symlink is one": ([["d b", "l a b", "h c a", "f c/f 1"]], ["l a b", "d b", "f b/f 1", "h c a"]),
    "a symlink that leads elsewhere meanwhile": (
        [["l a b", "f a/f 1", "l a c", "f a/f 2", "d a", "f a/f 3"]],
        ["d a", "f a/f 3", "d b", "f b/f 1", "d c", "f c/f 2"],
    ),
    "a link on the way that leads elsewhere meanwhile": (
        [["l a b", "l b c", "f a/f 1", "h b a", "l b d", "f a/f 2"]],
        ["l a b", "l b d", "d c", "f c/f 1", "d d", "f d/f 2"],
    ),
    "a symlink to a lower file": ([["f b 1"], ["l a b", "f a/f 2"]], ["l a b", "d b", "f b/f 2"]),
    "hard link through a symlink": (
        [["d usr", "d usr/lib", "l lib usr/lib", "f lib/f 1", "h usr/g lib/f"]],
        ["l lib usr/lib", "d usr", "f usr/g 1", "d usr/lib", "h usr/lib/f usr/g"],
    ),
    "hard link through a lower symlink": (
        [["d b", "f b/f 1", "l a b"], ["h c a/f"]],
        ["l a b", "d b", "f b/f 1", "h c b/f"],
    ),
    "what came through a symlink is of its layer": (
        [["d b", "f b/f 1"], ["l a b", "f a/f 2", "f b/.wh.f", "f b/.wh..wh..opq"]],
        ["l a b", "d b", "f b/f 2"],
    ),
    # -- two dots
    "two dots inside": ([["d a", "f a/../b 1"]], ["d a", "f b 1"]),
    "two dots beyond the root": ([["f ../../b 1", "f /../a/../../c 2"]], ["f b 1", "f c 2"]),
    "two dots do not follow links": ([["d b", "d b/c", "l a b/c", "f a/../f 1"]], ["l a b/c", "d b", "d b/c", "f f 1"]),
    "two dots through nothing": ([["f no/where/../../b 1"]], ["f b 1"]),
    "two dots at the end": ([["d a/b/..", "f c/d/.. 1"]], ["d a", "f c 1"]),
    "two dots in a whiteout": ([["f b 1", "d a", "f a/f 1"], ["f a/../.wh.b", "f x/../a/.wh.f"]], ["d a"]),
    "two dots in a target": ([["d a", "f b 1", "h c a/../b", "h d ../../b"]], ["d a", "f b 1", "h c b", "h d b"]),
    # -- what AUFS left
    "links into plnk": (
        [["f .wh..wh.aufs", "d .wh..wh.plnk", "f .wh..wh.plnk/1.2 x", "h a .wh..wh.plnk/1.2", "h b .wh..wh.plnk/1.2"]],
        ["f a x", "h b a"],
    ),
    "plnk that is not listed, and links among it": (
        [["f .wh..wh.plnk/1.2 x", "h .wh..wh.plnk/3.4 ./.wh..wh.plnk/1.2", "h a /.wh..wh.plnk/3.4"]],
        ["f a x"],
    ),
    "plnk that links to the tree": ([["f a x", "h .wh..wh.plnk/1.2 a", "h b .wh..wh.plnk/1.2"]], ["f a x", "h b a"]),
    "reserved names anywhere": (
        [["d a", "f a/.wh..wh.x 1", "d a/.wh..wh.y", "f a/.wh..wh.y/z/.wh..wh.orph/q 2", "h b a/.wh..wh.x"]],
        ["d a", "f b 1"],
    ),
    "link to what is below a reserved name": (
        [["f a/.wh..wh.y/z 1", "f a/.wh..wh.y/b/c 2", "h d a/.wh..wh.y/z", "h e a/.wh..wh.y/b/c"]],
        ["d a", "f d 1", "f e 2"],
    ),
    "an opaque marker with something below": ([["f a/f 1"], ["f a/.wh..wh..opq/x 1"]], ["d a", "f a/f 1"]),
    "link target spelled oddly": ([["d a", "f a/b 1", "h c ./a//b"]], ["d a", "f a/b 1", "h c a/b"]),
}


@pytest.mark.parametrize("name", TREES)
def test_layers_make_this_tree(name: str) -> None:
    layers, expected = TREES[name]
    assert build(*layers) == expected


REFUSED: dict[str, tuple[list[list[str]], str]] = {
    "parent is a file": ([["f a 1", "f a/b 2"]], r"'a/b'.*'a' in it is no directory"),
    "parent is a link to a file": ([["f b 1", "l a b", "f a/c 2"]], r"'a/c'.*'b' in it is no directory"),
    "parent is a file that was a directory below": ([["d a"], ["f a 1", "f a/b 2"]], "'a' in it is no directory"),
    "parent leads to itself": ([["l a a", "f a/b 1"]], r"'a/b'.*more than 40 symbolic links"),
    "parents lead in a circle": ([["l a b/x", "l b a/x", "f a/b 1"]], r"'a/b'.*more than 40 symbolic links"),
    "link through a circle": ([["l a b", "l b a", "h c a/f"]], r"'c'.*more than 40 symbolic links"),
    "41 links": ([[*(f"l {n} {n + 1}" for n in range(40)), "l 40 .", "f 0/f 1"]], "more than 40 symbolic links"),
    "link through what is a file": ([["f a 1"], ["h b a/c"]], "does not exist"),
    "link to a reserved name that is not there": ([["h b .wh..wh.plnk/1.2"]], "does not exist"),
    "link to a reserved directory": ([["d .wh..wh.plnk", "h b .wh..wh.plnk"]], "is a directory"),
    "file that ends in two dots": ([["d a", "f a/.. 1"]], "only a directory"),
    "root is a file": ([["f ./ 1"]], "only a directory"),
    "link to nothing": ([["h a b"]], r"'a'.*hard link to 'b', which does not exist"),
    "link to what was deleted": ([["f b 1"], ["f .wh.b", "h a b"]], "does not exist"),
    "link into nothing": ([["h a no/where"]], "does not exist"),
    "link to the root": ([["h a /"]], "does not exist"),
    "link to two dots": ([["d b", "h a b/.."]], "does not exist"),
    "link to a directory": ([["d b", "h a b"]], r"hard link to 'b', which is a directory"),
    "path too long": ([["f " + "a/" * 2100 + "b 1"]], "more than 4096"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layer_that_contradicts_itself_is_refused(name: str) -> None:
    layers, message = REFUSED[name]
    with pytest.raises(OciError, match=message):
        build(*layers)


NAMES = st.sampled_from(["a", "b", "c", "..", ".", "", ".wh..wh.plnk", "a", "b"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
LASTS = st.sampled_from(["a", "b", "c", "a", "b", "c", "..", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh.x"])
LINES = st.one_of(
    st.builds("d {}/{}".format, PATHS, LASTS),
    st.builds("f {}/{} x".format, PATHS, LASTS),
    st.builds("l {}/{} {}".format, PATHS, LASTS, PATHS.filter(bool)),
    st.builds("h {}/{} {}".format, PATHS, LASTS, PATHS),
    st.builds("l {} {}".format, st.sampled_from("abc"), PATHS.filter(bool)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(LINES, max_size=12), max_size=3))
def test_any_entries_make_a_tree_or_an_error(layers: list[list[str]]) -> None:
    """No name that hides something is in it; and it is the same for a builder that never remembers where it was."""

    def outcome(forget: bool) -> list[str] | str:
        builder = TreeBuilder()
        try:
            for layer in layers:
                builder.begin_layer("layer")
                for line in layer:
                    builder.add([parse(line)])
                    if forget:
                        builder._forget_places()
            return shape(builder.finish(None))
        except OciError as error:
            return str(error)

    found = outcome(False)
    assert outcome(True) == found
    if isinstance(found, list):
        assert not any(name.startswith(".wh.") for line in found for name in line.split(" ")[1].split("/"))


def test_steps_through_links_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_MAX_STEPS", 1 << 17)
    far = "/".join(["d", ".."] * 1000)
    lines = ["d d", *(f"l {n} {far}/{n + 1}" for n in range(30)), "l 30 .", "f f x"]
    links = (parse(f"h h{number} 0/f") for number in range(100))
    with pytest.raises(OciError, match="names in their targets stand on the way"):
        tree_from_layers([(each for part in (map(parse, lines), links) for each in part)])


@pytest.mark.parametrize(
    ("layers", "marker"),
    [
        ([["f a 1"], ["f a 2", "f .wh.a"]], "'.wh.a'"),
        ([["d a"], ["f a/b 1", "f .wh.a"]], "'.wh.a'"),
        ([["f a 1"], ["f b 1", "f c 1", "f .wh..wh..opq"]], "'.wh..wh..opq'"),
        ([["f a 1"], ["f .wh.a", "f a 2", "f .wh.a", "f b 1", "f .wh.b"]], "'.wh.a'"),
        ([["f a 1"], ["f .wh.a", "f a 2", "f .wh..wh..opq"]], "'.wh..wh..opq'"),
        ([["f a 1"], ["f .wh.a", "f a 2"]], ""),
        ([["d a", "f a/b 1"], ["d a", "f a/.wh..wh..opq", "f a/c 1"]], ""),
    ],
)
def test_what_another_program_hides_is_noted(layers: list[list[str]], marker: str) -> None:
    builder = TreeBuilder()
    for number, layer in enumerate(layers):
        builder.add_layer(map(parse, layer), f"layer {number}")
    reason = f"composefs-rs 0.9.0 lets the whiteout {marker} hide what its own layer has brought"
    assert builder.differences == ({"layer 1": reason} if marker else {})


def test_error_names_layer_and_entry() -> None:
    builder = TreeBuilder()
    with pytest.raises(OciError) as caught:
        builder.add_layer([parse("h a b")], "layer sha256:0")
    assert caught.value.what == "layer sha256:0, entry 'a'"


def test_unlisted_directories_are_bounded() -> None:
    paths = (b"%d/%b" % (number, b"d/" * 1000) for number in range(300))
    with pytest.raises(OciError, match="not listed in any layer"):
        tree_from_layers([(entry(path + b"f") for path in paths)])


def test_many_opaque_markers_take_linear_time() -> None:
    """Each looks only at what no other has looked at; otherwise they would look at 400 million names."""
    names = [b"d/%d" % number for number in range(20_000)]
    lower = [entry(b"d", EntryType.DIRECTORY), *map(entry, names)]
    upper = [*map(entry, names), *[entry(b"d/.wh..wh..opq")] * 20_000]
    assert len(list(walk(tree_from_layers([lower, upper])))) == 20_002


def test_inodes_have_what_their_entries_say() -> None:
    object_id = ObjectId(bytes(32))
    made = [
        entry(b"d", EntryType.DIRECTORY),
        entry(b"i", EntryType.FILE, b"x", size=1),
        entry(b"e", EntryType.FILE, object_id, size=65),
        entry(b"empty", EntryType.FILE, b""),
        entry(b"l", EntryType.SYMLINK, link=b"t"),
        entry(b"c", EntryType.CHARACTER_DEVICE, rdev=0x103),
        entry(b"b", EntryType.BLOCK_DEVICE, rdev=0x800),
        entry(b"p", EntryType.FIFO),
    ]
    common = [each._replace(mode=0o4711, uid=70_000, gid=3, mtime_ns=-5, xattrs=(CAPABILITY,)) for each in made]
    root = tree_from_layers([common], None)
    kinds: dict[bytes, tuple[type[Inode], int]] = {
        b"d": (Directory, stat.S_IFDIR),
        b"i": (InlineFile, stat.S_IFREG),
        b"e": (ExternalFile, stat.S_IFREG),
        b"empty": (InlineFile, stat.S_IFREG),
        b"l": (Symlink, stat.S_IFLNK),
        b"c": (Special, stat.S_IFCHR),
        b"b": (Special, stat.S_IFBLK),
        b"p": (Special, stat.S_IFIFO),
    }
    for name, inode in root.children.items():
        kind, bits = kinds.pop(name)
        assert type(inode) is kind
        found = (inode.mode, inode.uid, inode.gid, inode.mtime_ns, inode.xattrs)
        assert found == (bits | 0o4711, 70_000, 3, -5, (CAPABILITY,))
    assert kinds == {}
    external, character = root.children[b"e"], root.children[b"c"]
    assert isinstance(external, ExternalFile)
    assert (external.size, external.digest, external.payload) == (65, object_id, None)
    assert isinstance(character, Special)
    assert character.rdev == 0x103


def metadata(inode: Inode | None) -> tuple[int, int, int, int, object]:
    assert inode is not None
    return inode.mode & 0o7777, inode.uid, inode.gid, inode.mtime_ns, inode.xattrs


def test_directory_over_directory_takes_the_new_metadata_and_keeps_the_inode() -> None:
    builder = TreeBuilder()
    builder.add_layer([entry(b"a", EntryType.DIRECTORY, mode=0o700, uid=1, xattrs=(LABEL,)), entry(b"a/b")])
    builder.add_layer([entry(b"a", EntryType.DIRECTORY, mode=0o755, gid=2, mtime_ns=3)])
    root = builder.finish(None)
    assert metadata(root.children[b"a"]) == (0o755, 0, 2, 3, ())
    assert find(root, b"a/b") is not None


def test_unlisted_directory_has_plain_metadata() -> None:
    root = tree_from_layers([[entry(b"a/b", mode=0o600, uid=5, mtime_ns=9)]], None)
    assert metadata(root.children[b"a"]) == (0o755, 0, 0, 0, ())


@pytest.mark.parametrize("xattrs", [None, XattrFilter.ALLOWLIST_ONLY])
def test_link_counts_are_true_in_the_end(xattrs: XattrFilter | None) -> None:
    lines = ["d usr", "d usr/a", "f usr/f x", "h usr/g usr/f", "h usr/a/h usr/f", "f gone x", "h kept gone"]
    root = tree_from_layers([map(parse, lines), [entry(b".wh.gone")]], xattrs)
    found = {path: inode.nlink for path, inode in walk(root)}
    assert found == {b"/": 3, b"/kept": 1, b"/usr": 3, b"/usr/a": 2, b"/usr/a/h": 3, b"/usr/f": 3, b"/usr/g": 3}


# -- the transformation ------------------------------------------------------------------------

USR = entry(b"usr", EntryType.DIRECTORY, mode=0o750, uid=1, gid=2, mtime_ns=1_500_000_007, xattrs=(CAPABILITY, LABEL))


def test_root_is_as_usr_whatever_layers_say() -> None:
    root = tree_from_layers([[entry(b"", EntryType.DIRECTORY, mode=0o700, uid=9, mtime_ns=9), USR]])
    assert metadata(root) == (0o750, 1, 2, 1_500_000_007, (CAPABILITY,))


@pytest.mark.parametrize("layer", [[], [entry(b"usr", EntryType.SYMLINK, link=b"x")]], ids=["none", "symlink"])
@pytest.mark.parametrize("listed", [True, False])
def test_root_without_usr_is_as_the_layers_say(layer: list[TarEntry], listed: bool) -> None:
    own = [entry(b".", EntryType.DIRECTORY, mode=0o700, uid=9, mtime_ns=7)] if listed else []
    root = tree_from_layers([own, layer])
    assert metadata(root) == ((0o700, 9, 0, 7, ()) if listed else (0o755, 0, 0, 0, ()))


def test_path_that_ends_in_two_dots_says_nothing_about_the_root() -> None:
    root = tree_from_layers([[entry(b"a", EntryType.DIRECTORY), entry(b"a/..", EntryType.DIRECTORY, uid=9)]])
    assert metadata(root) == (0o755, 0, 0, 0, ())


@pytest.mark.parametrize(("usr", "mtime_ns"), [([USR], 1_500_000_007), ([], 4)])
def test_run_is_emptied(usr: list[TarEntry], mtime_ns: int) -> None:
    run = [entry(b"run", EntryType.DIRECTORY, mode=0o711, uid=3, mtime_ns=4), entry(b"run/x"), entry(b"run/y/z")]
    found = tree_from_layers([[*usr, *run]]).children[b"run"]
    assert isinstance(found, Directory)
    assert (metadata(found), found.children, found.nlink) == ((0o711, 3, 0, mtime_ns, ()), {}, 2)


def test_run_that_is_a_symlink_stays() -> None:
    run = tree_from_layers([[USR, entry(b"run", EntryType.SYMLINK, link=b"var/run", mtime_ns=4)]]).children[b"run"]
    assert isinstance(run, Symlink)
    assert (run.target, run.mtime_ns) == (b"var/run", 4)


@pytest.mark.parametrize(
    ("xattrs", "expected"),
    [
        (XattrFilter.ALLOWLIST_ONLY, (CAPABILITY,)),
        (XattrFilter.KEEP_USER_XATTRS, (CAPABILITY, USER)),
        (XattrFilter.NONE, (CAPABILITY, LABEL, USER)),
    ],
)
def test_filter_keeps_these_attributes(xattrs: XattrFilter, expected: object) -> None:
    entries = [
        entry(name, kind, link=b"t", xattrs=(CAPABILITY, LABEL, USER))
        for name, kind in ((b"usr", EntryType.DIRECTORY), (b"a", EntryType.FILE), (b"b", EntryType.SYMLINK))
    ]
    found = [inode.xattrs for _, inode in walk(tree_from_layers([entries], xattrs))]
    assert found == [expected] * 4
    assert len({id(each) for each in found}) == 1


def test_without_transformation_nothing_changes() -> None:
    root = tree_from_layers([[USR, entry(b"run/x")]], None)
    assert metadata(root) == (0o755, 0, 0, 0, ())
    assert root.children[b"usr"].xattrs == (CAPABILITY, LABEL)
    assert find(root, b"run/x") is not None
