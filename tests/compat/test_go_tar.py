"""Archives read as Go's archive/tar reads them, which podman, Docker and containerd unpack layers with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.digest import ObjectId
from composefs_async.errors import TarError
from composefs_async.oci.tar.members import EntryType, TarEntry
from composefs_async.oci.tar.sparse import SparseContent

from ..oci.conftest import Tar

USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \0", bytes(8)
MAGICS = (USTAR, GNU, V7, b"ustar\0XX", b"ustar\0\0\0", b"ustar 00", b"ustarx00", b"USTAR\x0000")
DATA = b"x" * 100
PROGRAM = r"""
package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
)

func main() {
	for _, path := range os.Args[1:] {
		file, _ := os.Open(path)
		reader, found := tar.NewReader(file), []any{}
		for {
			h, err := reader.Next()
			if err == io.EOF {
				break
			}
			hash := sha256.New()
			if err == nil {
				_, err = io.Copy(hash, reader)
			}
			if err != nil {
				found = nil
				break
			}
			sum := hex.EncodeToString(hash.Sum(nil))
			found = append(found, []any{h.Name, string(h.Typeflag), h.Linkname, h.Mode & 07777, h.Uid, h.Gid, sum})
		}
		json.NewEncoder(os.Stdout).Encode(found)
	}
}
"""
KINDS = {
    EntryType.FILE: "0",
    EntryType.HARDLINK: "1",
    EntryType.SYMLINK: "2",
    EntryType.CHARACTER_DEVICE: "3",
    EntryType.BLOCK_DEVICE: "4",
    EntryType.DIRECTORY: "5",
    EntryType.FIFO: "6",
}
Listing = list[tuple[object, ...]] | None
"""Path, type, link, mode, owner, group and content of each member; None for an archive that is refused."""


@pytest.fixture(scope="module")
def in_go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, bytes]], list[Listing]]:
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not on PATH")
    place = tmp_path_factory.mktemp("go")
    (place / "main.go").write_text(PROGRAM)
    environment = {**os.environ, "GOFLAGS": "", "GO111MODULE": "off"}
    subprocess.run([go, "build", "-o", "members", "main.go"], cwd=place, env=environment, check=True, timeout=300)

    def listings(archives: dict[str, bytes]) -> list[Listing]:
        paths: list[Path] = []
        for number, archive in enumerate(archives.values()):
            paths.append(place / f"{number}.tar")
            paths[-1].write_bytes(archive)
        run = subprocess.run([place / "members", *paths], capture_output=True, text=True, check=True)
        return [found and list(map(_as_go_says, found)) for found in map(json.loads, run.stdout.splitlines())]

    return listings


def _as_go_says(member: list[object]) -> tuple[object, ...]:
    name, kind, link, mode, uid, gid, sha256 = member
    kind = "0" if kind == "7" else kind
    assert isinstance(name, str)
    assert isinstance(uid, int)
    assert isinstance(gid, int)
    return name.rstrip("/"), kind, link if kind in ("1", "2") else "", mode, uid % 2**32, gid % 2**32, sha256


def _ours(tar: Tar, archive: bytes) -> Listing:
    try:
        return [_as_we_say(tar, entry, archive) for entry in tar.entries(archive)]
    except TarError:
        return None


def _as_we_say(tar: Tar, entry: TarEntry, archive: bytes) -> tuple[object, ...]:
    content = entry.content
    if isinstance(content, SparseContent):
        stored = DATA if content.form.map is not None else tar.padded(b"1\n900\n100\n") + DATA
        assert content.stored == tar.object_id(stored)
        made = bytes(900) + DATA
        assert content.form.segments(stored) == ([(900, 100)], len(stored) - 100)
        content = tar.object_id(made)
    sha256 = bytes(content) if isinstance(content, ObjectId) else hashlib.sha256(content or b"").digest()
    path, link = entry.path.decode(), entry.link.decode()
    return path, KINDS[entry.type], link, entry.mode, entry.uid, entry.gid, sha256.hex()


def without_data(tar: Tar) -> dict[str, bytes]:
    made = {}
    for kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
        name = kind.decode()
        made[f"type {name}, size in the header"] = tar.header(b"n", kind, size=700, link=b"after")
        made[f"type {name}, size of PAX"] = tar.pax((b"size", b"1024")) + tar.header(b"n", kind, link=b"after")
    made["size in base 256"] = tar.header(b"n/", b"5", size=b"\x80" + bytes(9) + b"\x02\0")
    made["size in both"] = tar.pax((b"size", b"5")) + tar.header(b"n", b"5", size=3)
    made["V7 directory with a size"] = tar.header(b"n/", b"\0", size=512, magic=V7)
    made["file of PAX size"] = tar.pax((b"size", b"100")) + tar.header(size=7) + tar.padded(DATA)
    made["type 7"] = tar.member(b"n", DATA, b"7")
    made["type NUL"] = tar.member(b"n", DATA, b"\0")
    return made


def dialects(tar: Tar) -> dict[str, bytes]:
    made = {}
    for magic in MAGICS:
        if magic != GNU:  # where Go takes text for a prefix that old programs in Go wrote, and the rest for times
            made[f"{magic!r}, prefix"] = tar.member(b"n", DATA, magic=magic, prefix=b"pre/fix")
        made[f"{magic!r}, PAX"] = tar.pax((b"path", b"other")) + tar.member(b"n", DATA, magic=magic)
        made[f"{magic!r}, long name"] = tar.member(b"l", b"long\0", b"L", magic=magic) + tar.member(magic=magic)
        made[f"{magic!r}, old directory"] = tar.header(b"n/", b"\0", magic=magic)
        made[f"{magic!r}, device"] = tar.header(b"n", b"3", magic=magic, device=(b"0000005\0", b"0000001\0"))
    return made


def values(tar: Tar) -> dict[str, bytes]:
    made = {}
    for mode in (0o100644, 0o40755, 0o120777, 0o7777, 0o177777, bytes(8), b"   644 \0", b"00000644", b"0000844\0"):
        made[f"mode {mode!r}"] = tar.member(b"n", DATA, mode=mode)
    for key in (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"uname", b"atime"):
        made[f"empty {key!r}"] = tar.pax((key, b"")) + tar.member(b"n", DATA, uid=5, gid=6, mtime=7)
        made[f"empty {key!r} of a link"] = tar.pax((key, b"")) + tar.header(b"n", b"2", link=b"l", uid=5)
    for value in (b"-1", b"-2", b"4294967295", b"1.5", b" 7", b"+7", b"0x7", b"07"):
        made[f"owner {value!r}"] = tar.pax((b"uid", value), (b"gid", value)) + tar.member(b"n", DATA)
    for value in (b"-1", b"1.5", b"-1.5", b"1.", b".5", b"1e3", b"1,5", b"12345678901.123456789123"):
        made[f"time {value!r}"] = tar.pax((b"mtime", value)) + tar.member(b"n", DATA)
    for value in (b"-1", b" 100", b"+100", b"100 "):
        made[f"size {value!r}"] = tar.pax((b"size", value)) + tar.member(b"n", DATA)
    unsigned = sum(tar.header(b"\xc3\xa9" * 4, checksum=b" " * 8))
    made["signed sum"] = tar.header(b"\xc3\xa9" * 4, checksum=b"%06o\0 " % (unsigned - 256 * 8))
    made["long name with NUL"] = tar.member(b"l", b"abc\0def\0", b"L", magic=GNU) + tar.member(b"n", DATA, magic=GNU)
    made["long link with NUL"] = tar.member(b"l", b"abc\0def\0", b"K", magic=GNU) + tar.header(b"n", b"2", link=b"z")
    made["a key twice"] = tar.pax((b"path", b"one"), (b"path", b"two")) + tar.member(b"n", DATA)
    made["a key twice, then empty"] = tar.pax((b"path", b"one"), (b"path", b"")) + tar.member(b"n", DATA)
    made["path with NUL"] = tar.pax((b"path", b"a\0b")) + tar.member(b"n", DATA)
    made["size before junk"] = tar.header(b"n", size=b"144\0junkjunk") + tar.padded(DATA)
    made["full fields"] = tar.member(b"n" * 100, DATA, prefix=b"p" * 155)
    made["full link"] = tar.header(b"n", b"2", link=b"l" * 100)
    size, pieces = (b"GNU.sparse.size", b"1000"), (b"GNU.sparse.numblocks", b"1")
    made["sparse 0.0"] = tar.pax(
        size, pieces, (b"GNU.sparse.offset", b"900"), (b"GNU.sparse.numbytes", b"100")
    ) + tar.member(b"s", DATA)
    made["sparse 0.1"] = tar.pax(
        size, pieces, (b"GNU.sparse.map", b"900,100"), (b"GNU.sparse.name", b"s")
    ) + tar.member(b"x", DATA)
    made["sparse 1.0"] = tar.pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"s"),
        (b"GNU.sparse.realsize", b"1000"),
    ) + tar.member(b"x", tar.padded(b"1\n900\n100\n") + DATA)
    made["sparse S"] = tar.member(b"s", DATA, b"S", magic=GNU)
    return made


@pytest.mark.parametrize("make", [without_data, dialects, values])
def test_members_are_those_that_go_finds(
    tar: Tar, in_go: Callable[[dict[str, bytes]], list[Listing]], make: Callable[[Tar], dict[str, bytes]]
) -> None:
    archives = {name: made + tar.member(b"after", b"y" * 70) + tar.end for name, made in make(tar).items()}
    expected = dict(zip(archives, in_go(archives), strict=True))
    assert {name: _ours(tar, archive) for name, archive in archives.items()} == expected
