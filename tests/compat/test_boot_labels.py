"""Labels and bootable images against cfsctl, and labels against libselinux.

The small trees are the corners of how a policy is found, read and applied; `cfsctl` 0.9.0 is asked what it makes of
each.
libselinux is asked by ctypes; it needs no kernel with SELinux.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composefs_async import Algorithm, Repository
from composefs_async.boot import Policy, directory_boot_tree, ensure_boot_image
from composefs_async.boot.matching import re2_module
from composefs_async.errors import ComposefsError
from composefs_async.oci import copy_image, pull
from composefs_async.tree import write_dump

from ..boot.conftest import B1_FILES, debian_policy, layer_of, make_b2, write_layout

__all__ = ["debian_policy"]

POLICY = "etc/selinux/t/contexts/files"
ENGINES = ["python", *(["re2"] if re2_module() else [])]


def make(top: Path, files: dict[str, str | bytes | None]) -> Path:
    """Files, symbolic links (text beginning with ``->``) and directories, with fixed times."""
    for name, content in {"boot": None, "sysroot": None, "usr": None, "run": None, **files}.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str) and content.startswith("-> "):
            path.symlink_to(content[3:])
        elif isinstance(content, str) and content.startswith("=> "):
            os.link(top / content[3:], path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for above, directories, names in os.walk(top, topdown=False):
        for each in (*directories, *names):
            os.utime(Path(above, each), ns=(0, 1_700_000_000_250_000_000), follow_symlinks=False)
    os.utime(top, ns=(0, 1_700_000_000_250_000_000))
    return top


def policy(contexts: str, **files: str) -> dict[str, str | bytes | None]:
    found: dict[str, str | bytes | None] = {
        "etc/selinux/config": "SELINUXTYPE=t\n",
        f"{POLICY}/file_contexts": contexts,
    }
    return found | {f"{POLICY}/file_contexts.{name}": text for name, text in files.items()}


TREES: dict[str, dict[str, str | bytes | None]] = {
    "no policy": {"etc/x": "x", "usr/f": ""},
    "no config": {"etc/selinux/t/contexts/files/file_contexts": "/.* a\n"},
    "no type": {"etc/selinux/config": "SELINUX=enforcing\n# SELINUXTYPE=t\n", "f": ""},
    "type in any case, disabled": policy("/.* a\n")
    | {"etc/selinux/config": "SELINUX=disabled\n selinuxtype = t\nx=y\n"},
    "unknown type": policy("/.* a\n") | {"etc/selinux/config": "SELINUXTYPE=other\n"},
    "quoted type": policy("/.* a\n") | {"etc/selinux/config": "SELINUXTYPE='t'\n"},
    "no file_contexts": {"etc/selinux/config": "SELINUXTYPE=t\n", f"{POLICY}/file_contexts.local": "/.* a\n"},
    "types of files": policy("/.* a\n/f -- f\n/d -d d\n/l -l l\n/n <<none>>\n")
    | {"f": "", "d": None, "l": "-> f", "n": ""},
    "no default": policy("/usr(/.*)? u\n") | {"usr/f": "", "g": ""},
    "order of files": policy("/f a\n/f b\n/g a\n", local="/f l\n/g l\n", homedirs="/g h\n") | {"f": "", "g": ""},
    "aliases": policy(
        "/.* a\n/b(/.*)? b\n/c(/.*)? c\n/h(/.*)? h\n",
        subs="/x /b\n/x/y /h\n/loop /loop/in\n/r b\n", subs_dist="/x /c\n/p/q /h\n"
    )
    | {"x/y/z": "", "p/q/r": "", "loop/in/f": "", "r/f": ""},
    "hard links": policy("/.* a\n/b/.* b\n/c/.* c\n") | {
        "b/f": "x", "a/f": "=> b/f", "b/g": "=> b/f", "c/f": "=> b/f", "c/g": "=> b/f", "d": "=> b/f", "a-": "=> b/f",
    },
    "classes and case": policy("/[[:alpha:]]+ a\n/(?i:XY)z b\n/[a-c&&[^b]]1 c\n/[x-z[0-3]]+2 d\n") | {
        "abc": "", "xyz": "", "XYz": "", "a1": "", "b1": "", "y02": "",
    },
    "stacked and lazy": policy("/a** s\n/b+?c l\n/d{2}{2} q\n/e*+e p\n")
    | {"aaa": "", "bbc": "", "dddd": "", "dd": "", "ee": ""},
    "look-around and newlines": policy("/.* a\n/n/(?!q).* p\n/m/.* m\n/(.)/\\1 r\n/(.)/\\2 s\n") | {
        "n/q": "", "n/x": "", "n/x\ny": "", "m/x\ny": "", "k/k": "", "k/j": "",
    },
    "anchors": policy("^/f f\n/g$ g\n/h\\b h\n/i\\B i\n\\A/j\\z j\n")
    | {"f": "", "g": "", "h": "", "i": "", "j": "", "hd": None},
    "beyond ASCII": policy("/\u00e9+ e\n/[^/]*x x\n/\u00a0y y\n") | {"\u00e9\u00e9": "", "\u00fcx": "", "y": ""},
    "white space": policy("\t/f\t--   f  \r\n\u2003/g\u00a0g\n\n   # /h h\n#/h\n") | {"f": "", "g": "", "h": ""},
    "missing context": policy("/a\n"),
    "trailing field": policy("/a b c d\n"),
    "bad type": policy("/a -x b\n"),
    "bad expression": policy("/(a b\n"),
    "bad alias": policy("/a b\n", subs="/x\n"),
    "bad UTF-8": policy("") | {f"{POLICY}/file_contexts": b"/\xff a\n"},
    "no boot": {"f": ""},
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_small_trees_are_as_cfsctl_makes_them(tmp_path: Path, tool: Callable[[str], Path], name: str) -> None:
    top = make(tmp_path / "top", TREES[name])
    if name == "no boot":
        (top / "boot").rmdir()
    command = [tool("cfsctl"), "--no-repo", "--hash", "sha256", "create-dumpfile", "--bootable", top]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    try:
        ours: bytes | None = b"".join(write_dump(directory_boot_tree(top, Algorithm.SHA256)))
    except ComposefsError:
        ours = None
    assert ours == (done.stdout if done.returncode == 0 else None), done.stderr.decode()[:300]


def test_part_of_usr_with_the_policy_of_debian_is_as_cfsctl_makes_it(
    tmp_path: Path, tool: Callable[[str], Path], debian_policy: dict[str, bytes]
) -> None:
    top = make(tmp_path / "top", {})
    copied = 0
    for source in (
        "/usr/bin",
        "/usr/sbin",
        "/usr/lib/systemd",
        "/etc",
        "/var/lib",
        "/lib/udev",
        "/usr/lib/x86_64-linux-gnu",
    ):
        for above, _, names in os.walk(source):
            for each in names[:40]:
                path = Path(above, each)
                if copied < 6000 and not path.is_symlink() and stat.S_ISREG(path.lstat().st_mode):
                    copied += 1
                    target = top / str(path)[1:]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.touch()
    (top / "etc/selinux/config").unlink(missing_ok=True)
    make(
        top,
        {"etc/selinux/config": "SELINUXTYPE=t\n", **{f"{POLICY}/{name}": text for name, text in debian_policy.items()}},
    )
    command = [tool("cfsctl"), "--no-repo", "--hash", "sha256", "create-dumpfile", "--bootable", top]
    theirs = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    ours = b"".join(write_dump(directory_boot_tree(top, Algorithm.SHA256)))
    assert copied > 300
    assert ours.splitlines() == theirs.splitlines()


def test_b2_through_a_repository_is_as_cfsctl_makes_it(tmp_path: Path, tool: Callable[[str], Path]) -> None:
    top = make_b2(tmp_path / "b2")
    repository = tmp_path / "repo"
    cfsctl = tool("cfsctl")
    run = [cfsctl, "--repo", repository]
    subprocess.run(
        [*run, "init", "--insecure", "--algorithm", "fsverity-sha512-12", repository], check=True, timeout=60
    )
    found = subprocess.run(
        [*run, "create-image", "--bootable", top], capture_output=True, check=True, timeout=60
    ).stdout
    from composefs_async import fsverity
    from composefs_async.erofs.writer import build_image

    image = build_image(directory_boot_tree(top), Algorithm.SHA512, 1)
    assert found.decode().strip().endswith(fsverity.digest(image, Algorithm.SHA512).hex())


# -- libselinux --------------------------------------------------------------------------------


class Option(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("value", ctypes.c_char_p)]


class LibSelinux:
    """selabel_open(3) and selabel_lookup(3), on files that need not be those of this machine."""

    FILE, PATH = 0, 3  # selinux/label.h: SELABEL_CTX_FILE, SELABEL_OPT_PATH

    def __init__(self) -> None:
        name = ctypes.util.find_library("selinux")
        if name is None:
            pytest.skip("libselinux is not installed")
        self.library = ctypes.CDLL(name, use_errno=True)
        self.library.selabel_open.restype = ctypes.c_void_p
        self.library.selabel_lookup_raw.argtypes = [
            ctypes.c_void_p, ctypes.POINTER(ctypes.c_char_p), ctypes.c_char_p, ctypes.c_int,
        ]  # fmt: skip
        self.library.selabel_close.argtypes = [ctypes.c_void_p]
        self.handle: int | None = None

    def open(self, path: Path) -> LibSelinux:
        option = Option(self.PATH, os.fsencode(path))
        self.handle = self.library.selabel_open(self.FILE, ctypes.byref(option), 1)
        assert self.handle, f"selabel_open: {os.strerror(ctypes.get_errno())}"
        return self

    def close(self) -> None:
        if self.handle:
            self.library.selabel_close(self.handle)

    def label(self, path: bytes, mode: int) -> bytes | None:
        found = ctypes.c_char_p()
        if self.library.selabel_lookup_raw(self.handle, ctypes.byref(found), path, mode):
            return None
        return found.value


@pytest.fixture
def libselinux() -> Iterator[LibSelinux]:
    made = LibSelinux()
    yield made
    made.close()


KINDS = {"-": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "c": stat.S_IFCHR, "b": stat.S_IFBLK,
         "p": stat.S_IFIFO, "s": stat.S_IFSOCK}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_the_policy_of_debian_is_read_as_libselinux_reads_it(
    tmp_path: Path, libselinux: LibSelinux, debian_policy: dict[str, bytes], engine: str
) -> None:
    for name, content in debian_policy.items():
        (tmp_path / name).write_bytes(content)
    handle = libselinux.open(tmp_path / "file_contexts")
    ours = Policy.from_files(debian_policy, engine=engine)  # type: ignore[arg-type]
    paths = [
        b"/",
        b"/usr",
        b"/etc/shadow",
        b"/home/u/.ssh/x",
        b"/root/.bashrc",
        b"/run/lock/x",
        b"/var/run/x",
        b"/lib64/x",
    ]
    for top in ("/etc", "/usr/bin", "/usr/lib/systemd", "/var/lib/dpkg"):
        for above, _, names in os.walk(top):
            paths += [os.fsencode(Path(above, each)) for each in names[:6]]
    # What the files say is asked of both, without the home directories' templates.
    wanted = {path: handle.label(path, stat.S_IFREG) for path in paths[:2500]}
    assert {path: ours.label(path, "-") for path in wanted} == wanted
    assert {path: ours.as_libselinux().label(path, "-") for path in wanted} == wanted
    assert len(set(wanted.values())) > 20


NAMES = st.sampled_from(["a", "b", "ab", "c.d", "x1"])
PIECES = st.sampled_from([".*", "[^/]+", "[ab]", "a?", "(a|b)", "x[0-9]", r"\.", "(/.*)?", "/.*", "b+", "[^a]"])
REGEXES = st.builds(
    lambda names, tail: "/" + "/".join(names) + tail, st.lists(NAMES | PIECES, min_size=1, max_size=3),
    st.sampled_from(["", "(/.*)?", "/.*"]),
)  # fmt: skip
LINES = st.tuples(REGEXES, st.sampled_from(["", "", "-- ", "-d ", "-l "]))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINES, min_size=1, max_size=12),
    local=st.lists(LINES, max_size=3),
    paths=st.lists(PATHS, min_size=1, max_size=12),
)
def test_random_policies_are_read_as_libselinux_reads_them(
    tmp_path: Path, lines: list[tuple[str, str]], local: list[tuple[str, str]], paths: list[str]
) -> None:
    files = {}
    for name, chosen in (("file_contexts", lines), ("file_contexts.local", local)):
        # A line for the same expression and type twice makes libselinux warn.
        unique = dict.fromkeys(line for line in chosen if name == "file_contexts" or line not in lines)
        text = "".join(f"{regex} {kind}u:r:{name[14:]}t{number}:s0\n" for number, (regex, kind) in enumerate(unique))
        files[name] = text.encode()
        (tmp_path / name).write_bytes(files[name])
    library = LibSelinux().open(tmp_path / "file_contexts")
    try:
        for engine in ENGINES:
            theirs = Policy.from_files(files, engine=engine).as_libselinux()  # type: ignore[arg-type]
            for path in paths:
                for kind in "-dl":
                    assert theirs.label(path.encode(), kind) == library.label(path.encode(), KINDS[kind]), (path, kind)
    finally:
        library.close()


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=12), paths=st.lists(PATHS, min_size=1, max_size=12))
def test_both_engines_give_the_same_labels(lines: list[tuple[str, str]], paths: list[str]) -> None:
    text = "".join(f"{regex} {kind}t{number}\n" for number, (regex, kind) in enumerate(lines))
    found = [Policy.from_files({"file_contexts": text.encode()}, engine=engine) for engine in ENGINES]  # type: ignore[arg-type]
    for path in paths:
        for kind in KINDS:
            assert len({policy.label(path.encode(), kind) for policy in found}) == 1, (path, kind)


def test_cfsctl_finds_our_bootable_images_and_copies_sound(tmp_path: Path, tool: Callable[[str], Path]) -> None:
    reference = write_layout(tmp_path / "layout", layer_of(dict(B1_FILES)))
    target = tmp_path / "target"
    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        anyio.run(partial(pull, repo, reference, tag="demo"))
        image = ensure_boot_image(repo, "demo").boot_image(1)
        with Repository.init(target, algorithm=Algorithm.SHA256, insecure=True) as other:
            anyio.run(partial(copy_image, other, repo, "demo", tag="demo"))
    assert image is not None
    for path in (tmp_path / "repo", target):
        run = [tool("cfsctl"), "--repo", path]
        found = subprocess.run([*run, "oci", "inspect", "demo"], capture_output=True, check=True, timeout=60).stdout
        assert json.loads(found)["composefs_boot_erofs"] == image.hex()
        subprocess.run([*run, "oci", "fsck"], capture_output=True, check=True, timeout=60)
        subprocess.run([*run, "gc"], capture_output=True, check=True, timeout=60)
        computed = subprocess.run([*run, "oci", "compute-id", "--bootable", "demo"], capture_output=True, check=True)
        assert computed.stdout.decode().strip() == image.hex()
