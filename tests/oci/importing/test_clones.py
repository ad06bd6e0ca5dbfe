"""Content shared with the files of a store: on file systems with reflinks, which are made in a file here."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import random
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async import Algorithm, Repository
from composefs_async.oci import pull
from composefs_async.oci.documents import Descriptor, image_layers, parse_config, parse_manifest
from composefs_async.oci.importing.clones import CLONE_FROM, Clones
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.sources.base import BlockingBlob, Cloner, ResolvedImage
from composefs_async.oci.sources.storage.files import LayerFiles, LayerReader
from composefs_async.oci.sources.storage.recipe import FilePart
from composefs_async.registry.access import Transfer
from composefs_async.repository import state_of

pytestmark = pytest.mark.anyio

FILES = {
    "small": b"s" * 100,
    "below": random.Random(1).randbytes(CLONE_FROM - 1),
    "just": random.Random(2).randbytes(CLONE_FROM),
    "odd": random.Random(3).randbytes(200_001),
    "large": random.Random(4).randbytes(3_000_001),
    "twin": random.Random(3).randbytes(200_001),
}
SHARED = ("just", "odd", "large")


def _mounted(tmp_path: Path, make: list[str]) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not there, or not root")
    image, place = tmp_path / "disk", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    place.mkdir()
    subprocess.run([*make, image], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", image, place], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system of {make[0]} cannot be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture(params=[["mkfs.xfs", "-q", "-m", "reflink=1"], ["mkfs.btrfs", "-q"]], ids=["xfs", "btrfs"])
def reflinks(request: pytest.FixtureRequest, tmp_path: Path, may_mount: None) -> Iterator[Path]:
    yield from _mounted(tmp_path, request.param)


class Store:
    """A layer unpacked in a directory, as a store has it, and the source that puts it together again."""

    layers_at_once = 1

    def __init__(self, place: Path, files: dict[str, bytes] = FILES) -> None:
        self.place = place / "layer"
        self.place.mkdir()
        out, self.parts = io.BytesIO(), list[bytes | FilePart]()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, content in files.items():
                (self.place / name).write_bytes(content)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        self.tar, at = out.getvalue(), 0
        with tarfile.open(fileobj=io.BytesIO(self.tar)) as archive:
            for member in archive:
                self.parts += [self.tar[at : member.offset_data], FilePart(member.name.encode(), member.size, b"")]
                at = member.offset_data + member.size
        self.parts.append(self.tar[at:])
        writer = OciLayoutWriter(place / "layout")
        writer.add_image([writer.add_layer(self.tar, "none")], tag="1")
        self._layout = place / "layout"
        self.before_reading: Callable[[], object] = lambda: None

    async def resolve(self, **_options: Any) -> ResolvedImage:
        import json

        blobs = self._layout / "blobs/sha256"
        digest = json.loads((self._layout / "index.json").read_bytes())["manifests"][0]["digest"]
        manifest = parse_manifest((blobs / digest[7:]).read_bytes(), digest)
        raw = (blobs / manifest.config.digest[7:]).read_bytes()
        config = parse_config(raw, manifest.config.digest)
        return ResolvedImage("store:1", manifest, config, raw, image_layers(manifest, config))

    def open_blob(self, _descriptor: Descriptor) -> Any:
        return self._Opened(self)

    class _Opened:
        def __init__(self, store: Store) -> None:
            self._store = store

        async def __aenter__(self) -> BlockingBlob:
            self._files = LayerFiles("layer", (self._store.place,))
            reader = self._reader = LayerReader(iter(self._store.parts), self._files)
            offer = reader.offer

            def offered(cloner: Cloner) -> None:
                offer(cloner)
                self._store.before_reading()

            return BlockingBlob(reader.readinto, len(self._store.tar), unpacked=True, offer=offered)

        async def __aexit__(self, *_: object) -> None:
            self._reader.close()
            self._files.close()


def bring(repo: Repository, store: Any, link: Any, **options: Any) -> Any:
    return anyio.run(partial(pull, repo, store, tag="t", transfer=Transfer(link=link), **options))


def is_shared(path: Path) -> bool:
    """Whether the first extent of a file is shared (fiemap of linux/fiemap.h)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        request = bytearray(struct.pack("=QQIIII", 0, 1 << 40, 1, 0, 1, 0) + bytes(56))
        fcntl.ioctl(file.fileno(), 0xC020660B, request)
    flags: int = struct.unpack_from("=I", request, 32 + 40)[0]
    return bool(flags & 0x2000)


def object_of(repo: Repository, name: str) -> Path:
    return Path(repo.path, "objects", repo.ensure_object(FILES[name]).id.path)


@pytest.fixture(params=[Algorithm.SHA256, Algorithm.SHA512], ids=str)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    found: Algorithm = request.param
    return found


def test_large_files_share_their_content(reflinks: Path, algorithm: Algorithm) -> None:
    store = Store(reflinks)
    with Repository.init(reflinks / "repo", algorithm=algorithm, insecure=True) as repo:
        stats = bring(repo, store, "auto").stats
        assert (stats.objects_reflinked, stats.bytes_reflinked) == (3, sum(len(FILES[name]) for name in SHARED))
        assert (stats.objects_stored, stats.objects_present) == (5, 1)
        assert {name: is_shared(object_of(repo, name)) for name in FILES if name not in ("small", "twin")} == {
            "below": False,
            "just": True,
            "odd": True,
            "large": True,
        }
        assert {object_of(repo, name).stat().st_mode & 0o7777 for name in SHARED} == {0o644}
        assert repo.fsck().errors == ()
        assert sorted(path.name for path in Path(repo.path, "objects").glob(".*")) == []


@pytest.mark.parametrize("link", ["none", "auto", "require"])
def test_the_same_stream_is_stored_either_way(reflinks: Path, tmp_path: Path, link: str) -> None:
    store, streams = Store(reflinks), []
    for place in (reflinks / "repo", tmp_path / "repo"):
        with Repository.init(place, insecure=True) as repo:
            if link == "require" and place.is_relative_to(tmp_path) and not place.is_relative_to(reflinks):
                link = "auto"
            result = bring(repo, store, link)
            streams.append((result.layers[0].stream_id, result.image_id, result.stats.objects_stored))
            assert (result.stats.objects_reflinked > 0) == (link != "none" and place.is_relative_to(reflinks))
    assert streams[0] == streams[1]


def test_a_file_that_changes_while_it_is_read_changes_nothing_that_is_stored(reflinks: Path) -> None:
    store = Store(reflinks)
    with Repository.init(reflinks / "repo", insecure=True) as repo:
        bring(repo, store, "require")
        with (store.place / "large").open("r+b") as file:
            file.write(b"x" * 100_000)
        (store.place / "odd").write_bytes(b"")
        assert repo.fsck().errors == ()
        assert hashlib.sha256(object_of(repo, "large").read_bytes()).digest() == hashlib.sha256(FILES["large"]).digest()


def test_a_file_that_has_another_size_when_it_is_cloned_is_not_shared(reflinks: Path) -> None:
    with Repository.init(reflinks / "repo", insecure=True) as repo:
        clones, path = Clones(state_of(repo), "auto"), reflinks / "file"
        path.write_bytes(FILES["odd"])
        with path.open("rb") as file:
            assert clones.clone(file.fileno(), 0, len(FILES["odd"]) - 1) is None
            reader = clones.clone(file.fileno(), 512, len(FILES["odd"]))
            assert reader is not None
            assert os.pread(reader, 10, 0) == FILES["odd"][:10]
            os.close(reader)
            assert clones.take(0, 5) is None
            assert clones.take(512, 5) is None  # the archive says otherwise
            assert clones.take(512, len(FILES["odd"])) is None
        clones.close()


def test_content_that_cannot_be_shared(tmp_path: Path) -> None:
    """The directory for tests is on a file system without reflinks, or at least nothing is lost."""
    store = Store(tmp_path)
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        with (store.place / "odd").open("rb") as one, (tmp_path / "other").open("wb") as other:
            try:
                fcntl.ioctl(other.fileno(), 0x40049409, one.fileno())
                pytest.skip("this file system has reflinks")
            except OSError:
                pass
        with pytest.raises(OSError, match="one file system with reflinks") as caught:
            bring(repo, store, "require")
        assert (caught.value.errno, list(Path(repo.path).glob("streams/*"))) == (errno.EOPNOTSUPP, [])
        assert bring(repo, store, "auto").stats.objects_reflinked == 0
        assert repo.fsck().errors == ()


def test_a_source_without_files_cannot_share(tmp_path: Path) -> None:
    Store(tmp_path)
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        with pytest.raises(OSError, match="the source has no files of its own"):
            bring(repo, f"oci:{tmp_path / 'layout'}:1", "require")
        bring(repo, f"oci:{tmp_path / 'layout'}:1", "auto")


def test_few_descriptors_are_enough(reflinks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no more files can be opened, files are written."""
    from composefs_async.oci.importing import clones

    real, count = clones.objects.create_object_tmpfile, [0]

    def failing(state: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(state)

    store = Store(reflinks)
    monkeypatch.setattr(clones.objects, "create_object_tmpfile", failing)
    with Repository.init(reflinks / "repo", insecure=True) as repo:
        assert bring(repo, store, "auto").stats.objects_reflinked == 2
        monkeypatch.undo()
        assert repo.fsck().errors == ()


async def test_a_pull_that_is_cancelled_leaves_nothing_open(tmp_path: Path, no_leaks: object) -> None:
    store = Store(tmp_path)
    async with Repository.init_async(tmp_path / "repo", insecure=True) as repo:
        with anyio.CancelScope() as scope:
            store.before_reading = scope.cancel
            await pull(repo, store, tag="t", transfer=Transfer(link="auto"))  # type: ignore[arg-type]
    assert scope.cancelled_caught


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_clone_that_fails_is_an_error_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    from composefs_async.oci.importing import clones

    def failing(*_: object) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(clones.files, "clone_content", failing)
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            bring(repo, Store(tmp_path), "auto")
        assert (caught.value.errno, caught.value.filename.startswith(repo.path)) == (number, True)
        assert list(Path(repo.path).glob("streams/*")) == []
