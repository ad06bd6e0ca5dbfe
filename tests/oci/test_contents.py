"""Files of a repository by their sha256: a cache that may be damaged."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async import ObjectId, Repository, oci
from composefs_async.errors import StreamNotFoundError
from composefs_async.oci.contents import RepositoryContents
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.sources.chunked.toc import TocFile
from composefs_async.repository import state_of


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", insecure=True) as repository:
        yield repository


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def file_of(data: bytes) -> TocFile:
    return TocFile(b"name", len(data), hashlib.sha256(data).digest(), 0, 1)


def test_files_are_known_by_content_and_size(repo: Repository) -> None:
    contents, other = RepositoryContents(state_of(repo)), RepositoryContents(state_of(repo))
    files = [content(number, 100) for number in range(3)]
    ids: list[ObjectId] = [repo.ensure_object(data).id for data in files]
    assert contents.is_empty()
    contents.note([(file_of(data), object_id) for data, object_id in zip(files, ids, strict=True)])
    wanted = [file_of(data) for data in (*files, b"x")]
    assert other.find(wanted) == {file.digest: found for file, found in zip(wanted, ids, strict=False)}
    assert other.find([replace(wanted[0], size=99)]) == {}
    other.forget([wanted[0].digest, b"y" * 32])
    assert sorted(contents.find(wanted)) == sorted(file.digest for file in wanted[1:3])
    Path(repo.path, "objects", ids[1].path).unlink()
    assert list(contents.find(wanted)) == [wanted[2].digest]
    assert repo.fsck().errors == ()


@pytest.mark.parametrize("damaged", [b"", b"x", b"composefs-async contents 2 sha512\n", b"\0" * 500])
def test_a_damaged_cache_knows_nothing(repo: Repository, damaged: bytes) -> None:
    contents, data = RepositoryContents(state_of(repo)), content(1, 100)
    stored = repo.ensure_object(data)
    contents.note([(file_of(data), stored.id)])
    path = Path(repo.path, ".composefs-async/contents")
    whole = path.read_bytes()
    path.write_bytes(damaged)
    assert (contents.is_empty(), contents.find([file_of(data)])) == (True, {})
    path.write_bytes(whole + b"cut")
    assert contents.find([file_of(data)]) == {file_of(data).digest: stored.id}
    path.write_bytes(damaged)
    contents.note([(file_of(data), stored.id)])
    assert path.read_bytes() == whole


def test_files_of_an_image_that_was_packed_otherwise(tmp_path: Path, repo: Repository) -> None:
    out = io.BytesIO()
    files = {"a": content(1, 100), "b/c": content(2, 70_000), "small": b"x" * 64, "again": content(1, 100)}
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    writer = OciLayoutWriter(tmp_path / "layout")
    writer.add_image([writer.add_layer(out.getvalue(), "gzip")], tag="1")
    anyio.run(partial(oci.pull, repo, f"oci:{tmp_path / 'layout'}:1", tag="one"))
    contents = RepositoryContents(state_of(repo))
    assert contents.is_empty()
    assert anyio.run(oci.index_contents_async, repo, "one") == 2
    assert set(contents.find([file_of(data) for data in files.values()])) == {
        file_of(files[name]).digest for name in ("a", "b/c")
    }
    with pytest.raises(StreamNotFoundError):
        oci.index_contents(repo, "two")
