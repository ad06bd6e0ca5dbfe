"""Taking chunks apart, natively and in Python: the same steps, whatever the sizes of buffers and pieces."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefs_async._maintenance.fsck import object_reader
from composefs_async._maintenance.fsck.chunks import Merged, Status, merge, merged_size
from composefs_async._repo.state import RepoState
from composefs_async.digest import Algorithm
from composefs_async.repository import Repository, state_of

SIZES = [0, 1, 65, 100, 4096, 5000, 70_000]
native = pytest.mark.skipif(not object_reader.NATIVE, reason="the native code is not built, or off")


class Content:
    """A stream of random chunks, of objects that are there, missing and wrong."""

    def __init__(self, state: RepoState, repo: Repository, seed: int) -> None:
        rng = random.Random(seed)
        self.state, self.objects = state, [rng.randbytes(size) for size in SIZES]
        ids = [repo.ensure_object(content).id for content in self.objects]
        Path(repo.path, "objects", ids[3].path).write_bytes(b"wrong")
        Path(repo.path, "objects", ids[4].path).unlink()
        self.table = b"".join(ids)
        self.body, self.content = b"", b""
        for _ in range(200):
            if rng.random() < 0.5:
                inline = rng.randbytes(rng.choice([1, 7, 512, 1000]))
                self.body += struct.pack("<q", -len(inline)) + inline
                self.content += inline
            else:
                index = rng.randrange(len(SIZES))
                self.body += struct.pack("<q", index)
                self.content += {3: b"wrong", 4: b""}.get(index, self.objects[index])


@pytest.fixture(params=list(Algorithm), ids=lambda algorithm: algorithm.value)
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    repo = Repository.init(tmp_path / "repo", algorithm=request.param, insecure=True)
    with repo:
        yield Content(state_of(repo), repo, 7)


def steps(content: Content, buffer_size: int, piece_size: int) -> tuple[list[Merged], bytes, bytes]:
    """All steps, the content, and which objects were read."""
    found, out, used = list[Merged](), b"", bytearray(len(SIZES))
    buffer, rest, left = bytearray(buffer_size), b"", 0
    for start in range(0, len(content.body), piece_size):
        piece, at, status = rest + content.body[start : start + piece_size], 0, Status.FULL
        while status is not Status.END:
            merged = merge(content.state, content.table, used, piece, at, left, buffer)
            found.append(merged._replace(failures=sorted(merged.failures)))
            out += buffer[: merged.size]
            if merged.status is Status.LARGE:
                out += content.objects[merged.value]
            status, at, left = merged.status, merged.at, merged.left
        rest = piece[at:]
    assert (rest, left) == (b"", 0)
    return found, out, bytes(used)


@pytest.mark.parametrize("buffer_size", [4096, 6000, 65_536, 1 << 20])
@pytest.mark.parametrize("piece_size", [1, 9, 600, 1 << 20])
def test_content_comes_out_whole(content: Content, buffer_size: int, piece_size: int) -> None:
    _, out, used = steps(content, buffer_size, piece_size)
    assert (out == content.content, used) == (True, b"\1" * len(SIZES))


@native
@pytest.mark.parametrize("buffer_size", [4096, 6000, 65_536, 1 << 20])
@pytest.mark.parametrize("piece_size", [9, 600, 1 << 20])
def test_both_take_the_same_steps(
    content: Content, buffer_size: int, piece_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_native = steps(content, buffer_size, piece_size)
    monkeypatch.setattr(object_reader, "NATIVE", False)
    assert steps(content, buffer_size, piece_size) == by_native


@pytest.mark.parametrize("implementation", ["as built", "python"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", Merged(Status.END, 0, 0, 0)),
        (b"\1" * 7, Merged(Status.END, 0, 0, 0)),
        (struct.pack("<q", 7), Merged(Status.INVALID, 0, 0, 0, 7)),
        (struct.pack("<q", -(2**63)), Merged(Status.INVALID, 0, 0, 0, -(2**63))),
        (struct.pack("<q", -(2**62)) + b"abc", Merged(Status.END, 11, 2**62 - 3, 3)),
        (struct.pack("<q", -1) + b"a" + struct.pack("<q", 99), Merged(Status.INVALID, 9, 0, 1, 99)),
    ],
    ids=["nothing", "part of a header", "index", "length", "long", "index behind content"],
)
def test_what_cannot_be_and_what_is_cut(
    body: bytes, expected: Merged, implementation: str, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    if implementation == "python":
        monkeypatch.setattr(object_reader, "NATIVE", False)
    used = bytearray(len(SIZES))
    merged = merge(content.state, content.table, used, body, 0, 0, bytearray(4096))
    sized = merged_size(content.state, content.table, body, 0, 0, object_reader.sizes(content.state, content.table))

    assert merged._replace(failures=()) == sized == expected


@pytest.mark.parametrize("implementation", ["as built", "python"])
def test_what_stands_in_the_place_of_objects(
    implementation: str, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it holds a check up, nor is followed out of the repository."""
    if implementation == "python":
        monkeypatch.setattr(object_reader, "NATIVE", False)
    width = content.state.algorithm.digest_size
    ids = [content.table[at : at + width] for at in range(0, len(content.table), width)]
    paths = [Path(content.state.path, "objects", each.hex()[:2], each.hex()[2:]) for each in ids]
    for path in (paths[0], paths[1], paths[2]):
        path.unlink()
    os.mkfifo(paths[0])
    paths[1].mkdir()
    paths[2].symlink_to(paths[5])
    loaded = object_reader.load(content.state, b"".join(ids[:6]), bytearray(65_536))
    assert [(each.at, each.step) for each in sorted(loaded.failures)] == [
        (0, "type"),
        (1, "type"),
        (2, "open"),
        (3, "digest"),
        (4, "open"),
    ]
    assert list(loaded.sizes) == [-1, -1, -1, 5, -1, 5000]
    assert [size < 0 for size in object_reader.sizes(content.state, b"".join(ids[:6]))] == [True] * 3 + [
        False,
        True,
        False,
    ]
