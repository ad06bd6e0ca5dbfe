"""Trees to make images of."""

from __future__ import annotations

import stat

import pytest
from hypothesis import strategies as st

from composefs_async.tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs, make_xattrs

ORDINARY = st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b".."))
# Names that whiteouts are added for, names before and behind the dots, and some so long that directories fill blocks.
NAMES = st.one_of(
    ORDINARY,
    st.sampled_from([b"00", b"ff", b"!", b"-", b".a", b"..a"]),
    st.integers(100, 999).map(lambda number: b"%d" % number * 80),
)
ATTRIBUTES = [
    b"user.a",
    b"user.b",
    b"security.selinux",
    b"security.capability",
    b"trusted.overlay.redirect",
    b"trusted.overlay.metacopy",
    b"trusted.overlay.zz",
    b"trusted.x",
    b"system.posix_acl_access",
    b"lustre.q",
    b"other",
]
VALUES = st.sampled_from([b"", b"x", b"value", b"y" * 300]) | st.binary(max_size=8)
XATTRS = st.dictionaries(st.sampled_from(ATTRIBUTES), VALUES, max_size=5).map(make_xattrs)
IDS = st.sampled_from([0, 0, 1000, 65536, 2**32 - 1])
TIMES = st.sampled_from([0, 0, 1, 10**9, 17 * 10**17 + 5])
DIGESTS = st.sampled_from([bytes([number]) * 32 for number in range(4)]) | st.binary(min_size=32, max_size=32)
SIZES = st.sampled_from([1, 4096, 4097, 10**6, 2**32 - 1, 2**32, 2**43, 2**43 + 1, 2**50])

Common = tuple[int, int, int, int, int, Xattrs]


@st.composite
def _common(draw: st.DrawFn, *kinds: int) -> Common:
    mode = draw(st.sampled_from(kinds)) | draw(st.sampled_from([0, 0o644, 0o755, 0o7777]))
    return mode, 1, draw(IDS), draw(IDS), draw(TIMES), draw(XATTRS)


def _leaves() -> st.SearchStrategy[Inode]:
    regular = _common(stat.S_IFREG)
    return st.one_of(
        st.builds(lambda common, content: InlineFile(*common, content), regular, st.binary(max_size=64)),
        st.builds(lambda common, size: InlineFile(*common, b"c" * size), regular, st.sampled_from([511, 512])),
        st.builds(lambda common, size, digest: ExternalFile(*common, size, digest), regular, SIZES, DIGESTS),
        st.builds(lambda common, size: ExternalFile(*common, size, None), regular, SIZES),
        st.builds(
            lambda common, size: Symlink(*common, b"t" * size), _common(stat.S_IFLNK), st.sampled_from([1, 900, 1024])
        ),
        st.builds(lambda common: Special(*common, 5), _common(stat.S_IFCHR, stat.S_IFBLK)),
        st.builds(lambda common: Special(*common), _common(stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)),
    )


@st.composite
def _trees(draw: st.DrawFn) -> Directory:
    directories = _common(stat.S_IFDIR)

    def directory(below: st.SearchStrategy[Inode]) -> st.SearchStrategy[Directory]:
        children = st.dictionaries(NAMES, below, max_size=8)
        return st.builds(lambda common, inside: Directory(*common, inside), directories, children)

    root = draw(directory(st.recursive(_leaves(), directory, max_leaves=12)))
    files = [inode for inode in root.children.values() if isinstance(inode, InlineFile | ExternalFile)]
    if files:
        for name in draw(st.lists(NAMES, max_size=3)):
            root.children.setdefault(name, draw(st.sampled_from(files)))
    return root


@pytest.fixture(scope="session")
def trees() -> st.SearchStrategy[Directory]:
    """Trees with SHA-256 digests that every layout can hold, hard links and whiteouts included."""
    return _trees()
