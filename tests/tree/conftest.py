"""Trees to make dump files of."""

from __future__ import annotations

import stat

import pytest
from hypothesis import strategies as st

from composefs_async.tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs, make_xattrs

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b".."))
TEXT = st.binary(min_size=1, max_size=30).filter(lambda text: 0 not in text)
U32 = st.sampled_from([0, 1, 1000, 65535, 65536, 2**32 - 1])
TIMES = st.integers(-(2**62), 2**62) | st.sampled_from([0, 1, -1, 10**9, 10**18])
XATTRS = st.dictionaries(TEXT, st.binary(max_size=30), max_size=4).map(make_xattrs)


@st.composite
def _common(draw: st.DrawFn, *kinds: int) -> tuple[int, int, int, int, int, Xattrs]:
    mode = draw(st.sampled_from(kinds)) | draw(st.integers(0, 0o7777))
    return mode, 1, draw(U32), draw(U32), draw(TIMES), draw(XATTRS)


def _leaf(common: st.SearchStrategy[tuple[int, int, int, int, int, Xattrs]], kind: type, *more: object) -> object:
    return st.builds(lambda fields, *rest: kind(*fields, *rest), common, *more)


def _leaves() -> st.SearchStrategy[Inode]:
    regular = _common(stat.S_IFREG)
    digests = st.none() | st.binary(min_size=32, max_size=32) | st.binary(min_size=64, max_size=64)
    return st.one_of(
        _leaf(regular, InlineFile, st.binary(max_size=100)),
        _leaf(regular, ExternalFile, st.integers(1, 2**64 - 1), digests, st.none() | TEXT),
        _leaf(_common(stat.S_IFLNK), Symlink, TEXT),
        _leaf(_common(stat.S_IFCHR, stat.S_IFBLK), Special, U32),
        _leaf(_common(stat.S_IFIFO, stat.S_IFSOCK), Special),
    )


def _directory(fields: tuple[int, int, int, int, int, Xattrs], children: dict[bytes, Inode]) -> Directory:
    return Directory(*fields, children)


@st.composite
def _trees(draw: st.DrawFn) -> Directory:
    directories = _common(stat.S_IFDIR)

    def directory(below: st.SearchStrategy[Inode]) -> st.SearchStrategy[Directory]:
        return st.builds(_directory, directories, st.dictionaries(NAMES, below, max_size=4))

    inodes = st.recursive(_leaves(), directory, max_leaves=8)
    root = draw(st.builds(_directory, directories, st.dictionaries(NAMES, inodes, max_size=5)))
    leaves = [inode for inode in root.children.values() if not isinstance(inode, Directory)]
    if leaves:
        for name in draw(st.lists(NAMES, max_size=3)):
            root.children.setdefault(name, draw(st.sampled_from(leaves)))
    return root


@pytest.fixture(scope="session")
def trees() -> st.SearchStrategy[Directory]:
    """Any tree that a dump file can hold, hard links included."""
    return _trees()
