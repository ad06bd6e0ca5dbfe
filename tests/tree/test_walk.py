"""Walks: order, hard links, depth."""

from __future__ import annotations

import sys

from composefs_async.tree import Directory, ExternalFile, InlineFile, Inode, Special
from composefs_async.tree.inodes import make_xattrs, object_path
from composefs_async.tree.walk import count_links, directories, find, path_of, walk


def directory(children: dict[bytes, Inode] | None = None) -> Directory:
    return Directory(0o40755, 1, 0, 0, 0, (), children)


FILE = InlineFile(0o100644, 1, 0, 0, 0)
INNER = directory({b"z": FILE})
ROOT = directory({b"b": INNER, b"c": FILE, b"a": FILE, b"b.": directory()})


def test_walk_goes_depth_first_in_byte_order() -> None:
    assert [path for path, _ in walk(ROOT)] == [b"/", b"/a", b"/b", b"/b/z", b"/b.", b"/c"]


def test_directories_come_before_those_inside_them() -> None:
    found = list(directories(ROOT))
    assert found[0] is ROOT
    assert set(found) == {ROOT, INNER, ROOT.children[b"b."]}


def test_links_are_counted_by_name_and_by_subdirectory() -> None:
    assert count_links(ROOT) == {ROOT: 4, INNER: 2, ROOT.children[b"b."]: 2, FILE: 3}


def test_a_path_is_found_with_any_slashes_around_names() -> None:
    assert find(ROOT, b"/b/z") is FILE
    assert find(ROOT, b"b//z/") is FILE
    assert find(ROOT, b"/") is ROOT
    assert find(ROOT, b"/b/y") is None
    assert find(ROOT, b"/a/x") is None


def test_an_inode_is_known_by_its_first_path() -> None:
    assert path_of(ROOT, FILE) == b"/a"
    assert path_of(INNER, ROOT) is None


def test_ten_thousand_levels_need_no_recursion() -> None:
    depth = 10 * sys.getrecursionlimit()
    root = inner = directory()
    for _ in range(depth):
        inner.children[b"d"] = inner = directory()
    assert sum(1 for _ in directories(root)) == depth + 1
    assert len(count_links(root)) == depth + 1
    assert path_of(root, inner) == b"/d" * depth


def test_an_external_file_knows_where_its_object_is() -> None:
    digest = bytes(range(32))
    assert object_path(digest) == b"00/" + digest[1:].hex().encode()
    table: list[tuple[bytes | None, bytes | None, bytes, bool]] = [
        (digest, None, object_path(digest), False),
        (digest, b"x", b"x", False),
        (digest, b"", b"", False),
        (None, b"x", b"x", False),
        (None, None, b"", True),
        (None, b"", b"", True),
    ]
    for verity, payload, path, sparse in table:
        file = ExternalFile(0o100644, 1, 0, 0, 0, (), 5, verity, payload)
        assert (file.path, file.is_sparse) == (path, sparse)


def test_only_a_character_device_0_0_is_a_whiteout() -> None:
    modes = {0o20000: True, 0o60000: False, 0o10000: False}
    assert {mode: Special(mode, 1, 0, 0, 0).is_whiteout for mode in modes} == modes
    assert not Special(0o20000, 1, 0, 0, 0, (), 5).is_whiteout


def test_inodes_are_small_and_show_what_they_are() -> None:
    assert not hasattr(FILE, "__dict__")
    assert repr(FILE) == "<InlineFile -rw-r--r-- 0:0>"
    assert FILE.permissions == 0o644
    assert make_xattrs({b"b": b"1", b"a": b"2"}) == ((b"a", b"2"), (b"b", b"1"))
