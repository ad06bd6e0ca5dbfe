"""Images against those of the real mkcomposefs, of composefs-rs, and the checker of erofs-utils."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from composefs_async.erofs.writer import Dialect, build_image, choose_version
from composefs_async.errors import DumpfileError, ErofsError
from composefs_async.tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs, make_xattrs
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.dumpwriter import write_dump
from composefs_async.tree.inodes import object_path
from composefs_async.tree.walk import walk

VECTORS = Path(__file__).parents[1] / "vectors" / "image"
DUMPS = sorted(VECTORS.rglob("*.r256.dump")) + sorted(VECTORS.glob("*.dump"))
SEEDS = range(25)
FLAGS = [[], ["--min-version=0"], ["--min-version=1"], ["--max-version=1"], ["--min-version=0", "--max-version=0"]]
# Without those that stand for whiteouts: mkcomposefs refuses some of them, and composefs-rs stores them twice.
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


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not on PATH")
    return found


class Maker:
    """Trees by chance.  *wide* ones have what only mkcomposefs accepts."""

    def __init__(self, seed: int, wide: bool) -> None:
        self.rng = random.Random(seed)
        self.wide = wide
        values = [self.rng.randbytes(self.rng.choice([0, 1, 5, 30, 300])) for _ in range(4)]
        self.xattrs: list[Xattrs] = [()] * 6
        for _ in range(8):
            names = self.rng.sample(ATTRIBUTES, self.rng.randrange(1, 6))
            self.xattrs.append(make_xattrs({name: self.rng.choice(values) for name in names}))
        self.digests = [bytes([number]) * 32 for number in range(5)]
        self.files: list[Inode] = []

    def common(self, kind: int) -> tuple[int, int, int, int, int, Xattrs]:
        rng = self.rng
        times = [0, 0, 1, 10**9, 17 * 10**17 + 5, *([-1, -(10**9)] if self.wide else [])]
        mode = kind | rng.choice([0o644, 0o755, 0o4777])
        owner = rng.choice([0, 0, 1000, 70000])
        return mode, 1, owner, rng.choice([0, 0, 1000]), rng.choice(times), rng.choice(self.xattrs)

    def tree(self) -> Directory:
        root = Directory(*self.common(stat.S_IFDIR))
        directories = [root]
        for number in range(self.rng.randrange(1, 200)):
            children = self.rng.choice(directories[-6:]).children
            name = self.name(number)
            if name not in children:
                inode = children[name] = self.inode()
                if isinstance(inode, Directory):
                    directories.append(inode)
        return root

    def name(self, number: int) -> bytes:
        rng = self.rng
        odd = bytes(rng.choice(b"abcdef\\\n =\xc3\xa4") for _ in range(rng.randrange(1, 100)))
        odd = odd.decode(errors="ignore").encode() or b"x"  # composefs-rs wants UTF-8
        return rng.choice([b"%02x" % rng.randrange(256), b"n%d", b"!x%d", b"-%d", b".%d", odd]).replace(
            b"%d", b"%d" % number
        )

    def inode(self) -> Inode:
        rng, wide = self.rng, self.wide
        kind = rng.choice(["directory", "inline", "external", "unverified", "symlink", "device", "special", "linked"])
        if kind == "directory":
            return Directory(*self.common(stat.S_IFDIR))
        if kind == "symlink":
            lengths = [1, 10, 100, 1000, *([4000, 4095] if wide else [])]
            return Symlink(*self.common(stat.S_IFLNK), b"t" * rng.choice(lengths))
        if kind == "device":
            return Special(*self.common(rng.choice([stat.S_IFCHR, stat.S_IFBLK])), rng.choice([0, 1, 123, 2**31]))
        if kind == "special":
            return Special(*self.common(rng.choice([stat.S_IFIFO, stat.S_IFSOCK])))
        if kind == "linked" and self.files:
            return rng.choice(self.files)
        self.files.append(self.file(kind))
        return self.files[-1]

    def file(self, kind: str) -> Inode:
        rng, wide = self.rng, self.wide
        common = self.common(stat.S_IFREG)
        if kind == "inline":
            lengths = [0, 1, 64, 500, *([2047, 2048, 2049, 4095, 4096, 4097, 5000] if wide else [])]
            return InlineFile(*common, rng.randbytes(rng.choice(lengths)))
        if kind == "unverified":
            return ExternalFile(*common, rng.randrange(1, 9999), None, rng.choice([None, object_path(self.digests[0])]))
        digest = rng.choice([*self.digests, *(rng.randbytes(32) for _ in range(5))])
        size = rng.choice([0, 1, 4096, 4097, 10**6, 2**32 - 1, 2**32, 2**43, 2**43 + 1, 2**50])
        return ExternalFile(
            *common, size, digest, rng.choice([None] * 9 + ([b"some/path", b"/abs", b""] if wide else []))
        )


def make(command: list[str], dump: bytes, directory: Path) -> bytes | None:
    """What a tool makes of *dump*, or None where it refuses."""
    source, image = directory / "dump", directory / "image"
    source.write_bytes(dump)
    done = subprocess.run([*command, "--from-file", source, image], capture_output=True, check=False)
    return image.read_bytes() if done.returncode == 0 else None


def ours(dump: bytes, version: int, dialect: Dialect) -> bytes | None:
    try:
        return build_image(parse_dump(dump), version=version, dialect=dialect)
    except ErofsError:
        return None


def chosen(dump: bytes, flags: list[str]) -> int:
    values = {flag[2:5] + "imum": int(flag[-1]) for flag in flags}
    return choose_version(parse_dump(dump), **values)


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize(
    "path", sorted(VECTORS.rglob("*.r256.dump")) + sorted(VECTORS.glob("*.dump")), ids=lambda p: p.stem
)
def test_golden_dumps_give_the_image_of_mkcomposefs(path: Path, flags: list[str], tmp_path: Path) -> None:
    dump = path.read_bytes()
    wanted = make([tool("mkcomposefs"), *flags], dump, tmp_path)
    assert wanted is not None
    assert ours(dump, chosen(dump, flags), Dialect.C) == wanted


@pytest.mark.parametrize("seed", SEEDS)
def test_random_trees_give_the_image_of_mkcomposefs(seed: int, tmp_path: Path) -> None:
    dump = b"".join(write_dump(Maker(seed, wide=True).tree()))
    for flags in FLAGS[:3]:
        wanted = make([tool("mkcomposefs"), *flags], dump, tmp_path)
        assert ours(dump, chosen(dump, flags), Dialect.C) == wanted is not None


MARKED = b"""\
/ 0 40755 3 0 0 0 0.0 - - - trusted.overlay.whiteouts=%b user.overlay.whiteouts=%b
/d 0 40755 2 0 0 0 0.0 - - - user.overlay.opaque=%b user.k=v
/d/gone 0 20000 1 0 0 0 0.0 - - - user.overlay.whiteout=%b
/gone 0 20644 1 0 0 0 0.0 - - - trusted.overlay.whiteout=%b
"""
MARKS = (b"", b"", b"x", b"", b"")
MISCOUNTED = (0, 1)
"""mkcomposefs takes the bytes of what these replace off a sum that does not have them."""


@pytest.mark.parametrize("index", range(len(MARKS)))
def test_marks_of_whiteouts_replace_attributes_of_the_same_name(index: int, tmp_path: Path) -> None:
    command = [tool("mkcomposefs")]
    wanted = make(command, MARKED % MARKS, tmp_path)
    assert wanted is not None
    dump = MARKED % (*MARKS[:index], b"longer", *MARKS[index + 1 :])
    assert make(command, dump, tmp_path) == (None if index in MISCOUNTED else wanted)
    assert ours(dump, 1, Dialect.C) == wanted


MALFORMED = {
    "empty name": b"/ 0 40755 2 0 0 0 0.0 - - - =",
    "content of another length": b"/ 0 40755 2 0 0 0 0.0 - abc -",
    "device number of a directory": b"/ 0 40755 2 0 0 x 0.0 - - -",
    "digest of a directory": b"/ 0 40755 2 0 0 0 0.0 - - \\",
    "long payload": b"/ 0 40755 2 0 0 0 0.0 - - -\n/a 9 100644 1 0 0 0 0.0 %b - -" % (b"p" * 4096),
    "payload of a directory": b"/ 0 40755 2 0 0 0 0.0 \\q - -",
    "time": b"/ 0 40755 2 0 0 0 x.0 - - -",
    "mode": b"/ 0 755 2 0 0 0 0.0 - - -",
}


@pytest.mark.parametrize("dump", MALFORMED.values(), ids=MALFORMED)
def test_malformed_lines_are_refused_as_by_mkcomposefs(dump: bytes, tmp_path: Path) -> None:
    assert make([tool("mkcomposefs")], dump, tmp_path) is None
    with pytest.raises(DumpfileError):
        parse_dump(dump)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_trees_give_the_image_of_composefs_rs(seed: int, tmp_path: Path) -> None:
    command = [tool("cfsctl"), "mkcomposefs"]
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False).stdout
    if "--min-version" not in help_text:
        pytest.skip("this cfsctl has no mkcomposefs")
    dump = b"".join(write_dump(Maker(seed, wide=False).tree()))
    for version in (0, 1):
        wanted = make([*command, f"--min-version={version}"], dump, tmp_path)
        assert ours(dump, version, Dialect.RUST) == wanted is not None


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_checker_of_erofs_utils_finds_nothing(version: int, tmp_path: Path) -> None:
    fsck = tool("fsck.erofs")
    image = tmp_path / "image"
    checked = 0
    for seed in SEEDS:
        root = Maker(seed, wide=False).tree()
        # Longer files have chunks so large that erofs-utils does not read their maps, and layout 2 cuts maps short.
        for _, inode in walk(root):
            if isinstance(inode, ExternalFile):
                inode.size = min(inode.size, 2**32)
        made = ours(b"".join(write_dump(root)), version, Dialect.RUST)
        if made is not None:
            image.write_bytes(made)
            done = subprocess.run([fsck, image], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            checked += 1
    assert checked


def test_unusual_dump_files_are_still_read_so(tmp_path: Path) -> None:
    """What `tests/tree` compares with without the program."""
    program, source, image = tool("mkcomposefs"), tmp_path / "dump", tmp_path / "image"
    for name, data, digest in json.loads((VECTORS.parent / "dump" / "lines.json").read_text()):
        source.write_bytes(data.encode("latin1"))
        command = [program, "--from-file", source, image]
        done = subprocess.run(command, check=False, capture_output=True, timeout=60)
        found = None if done.returncode else hashlib.sha256(image.read_bytes()).hexdigest()
        assert found == digest, name
