"""Directories of objects compared and emptied, by the native code and by its twin."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefs_async import _native
from composefs_async._maintenance.gc import shards
from composefs_async._maintenance.gc.idset import IdSet

BACKENDS = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(_native.BACKEND == "python", reason="not built, or off")),
]


@pytest.fixture(params=BACKENDS, ids=lambda native: "native" if native else "python", autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "NATIVE", request.param)


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def ids(count: int, width: int, first: int | None = None) -> list[bytes]:
    rng = random.Random(count * width)
    return [bytes([rng.randrange(256) if first is None else first]) + rng.randbytes(width - 1) for _ in range(count)]


def put(root: Path, object_id: bytes, content: bytes = b"") -> Path:
    path = root / object_id[:1].hex() / object_id[1:].hex()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


widths = pytest.mark.parametrize("width", [32, 64])


@widths
def test_ids_are_sorted_and_each_is_kept_once(width: int) -> None:
    some = ids(500, width)
    assert shards.sort_ids(b"".join(some + some[::-1]), width) == b"".join(sorted(some))
    assert shards.sort_ids(b"", width) == b""


@widths
def test_a_set_gives_the_ids_of_each_directory(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("composefs_async._maintenance.gc.idset._SLACK", 10 * width)
    some = ids(300, width)
    found = IdSet(width)
    for at in range(0, 300, 7):
        found.add(b"".join(some[at : at + 7]))
        found.add(some[at])
    expected = [b"".join(sorted(each for each in some if each[0] == first)) for first in range(256)]
    assert [found.shard(first) for first in range(256)] == expected


@widths
def test_a_directory_is_compared(width: int, tmp_path: Path, objects: int) -> None:
    live, dead, young = ids(300, width, 7)[:100], ids(300, width, 7)[100:200], ids(300, width, 7)[200:]
    for number, object_id in enumerate(live[1:] + dead):
        os.utime(put(tmp_path, object_id, b"x" * number), ns=(0, 0))
    since = max(path.stat().st_ctime_ns for path in (tmp_path / "07").iterdir()) + 1
    while put(tmp_path, young[0]).stat().st_ctime_ns < since:
        pass
    for object_id in young:
        put(tmp_path, object_id)
    listing = shards.compare(objects, 7, b"".join(sorted(live)), width, since)
    assert listing.matched == 99
    pairs = zip(shards.pieces(listing.dead, width), listing.sizes, strict=True)
    assert dict(pairs) == {object_id: 99 + number for number, object_id in enumerate(dead)}
    assert sorted(shards.pieces(listing.young, width)) == sorted(young)
    assert listing.others == []
    everything = shards.compare(objects, 7, b"", width, shards.NEVER)
    assert (everything.matched, len(everything.dead), everything.young) == (0, 299 * width, b"")


@widths
def test_what_is_no_object_is_told(width: int, tmp_path: Path, objects: int) -> None:
    good, upper, directory, link, short = ids(5, width, 255)
    put(tmp_path, good)
    names = [upper[1:].hex().upper(), directory[1:].hex(), link[1:].hex(), short[2:].hex(), "Ä\n", ".tmp-object-1"]
    shard = tmp_path / "ff"
    for name in names:
        (shard / name).mkdir() if name == names[1] else (shard / name).touch()
    (shard / names[2]).unlink()
    os.symlink("x", shard / names[2])
    listing = shards.compare(objects, 255, good, width, shards.NEVER)
    assert sorted(listing.others) == sorted((os.fsencode(name), os.lstat(shard / name).st_mode) for name in names)
    assert (listing.matched, listing.dead) == (1, b"")


def test_a_directory_that_is_not_there_is_empty(objects: int) -> None:
    listing = shards.compare(objects, 0, bytes(32), 32, 0)
    assert (listing.matched, listing.dead, listing.young, listing.others) == (0, b"", b"", [])


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_directory_is_an_error(tmp_path: Path, objects: int, kind: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "00").touch() if kind == "file" else os.symlink("real", tmp_path / "00")
    with pytest.raises(OSError, match="objects/00"):
        shards.compare(objects, 0, b"", 32, 0)


@widths
def test_objects_are_removed_up_to_an_error(width: int, tmp_path: Path, objects: int) -> None:
    some = ids(6, width)
    for object_id in (some[0], some[2], some[5]):
        put(tmp_path, object_id)
    assert shards.remove(objects, b"".join(some[:3]), width) == (bytes([1, 0, 1]), None)
    put(tmp_path, some[4]).unlink()
    (tmp_path / some[4][:1].hex() / some[4][1:].hex()).mkdir()
    statuses, error = shards.remove(objects, b"".join(some[3:]), width)
    assert statuses == bytes([0])
    assert error is not None
    assert error.filename == f"objects/{some[4][:1].hex()}/{some[4][1:].hex()}"
    assert [path.is_file() for path in tmp_path.glob("*/*")].count(True) == 1


@pytest.mark.skipif(_native.BACKEND == "python", reason="not built, or off")
@pytest.mark.parametrize(("size", "width"), [(33, 32), (48, 48), (64, 0)])
def test_the_native_code_refuses_what_are_no_ids(size: int, width: int) -> None:
    from composefs_async._native import _core

    with pytest.raises(ValueError, match="no ids"):
        _core.sort_ids(bytes(size), width)
    with pytest.raises(ValueError, match="no ids"):
        _core.compare_shard(-1, 0, bytes(size), width, 0)
    with pytest.raises(ValueError, match="no ids"):
        _core.remove_objects(-1, bytes(size), width)
