"""One layer into a repository: sources, packings, sizes, statistics, events."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiofiles
import anyio
import pytest
from anyio.abc import ByteReceiveStream

from composefs_async import fsverity
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    CompressionError,
    DigestMismatchError,
    InvalidNameError,
    OciError,
    RepositoryInUseError,
    TarError,
)
from composefs_async.oci.importing.layers import LayerResult, import_layer
from composefs_async.oci.importing.stages import _CHUNK
from composefs_async.oci.importing.unpack import Unpacker, byte_source
from composefs_async.oci.limits import Limits
from composefs_async.oci.sources import LocalBlob, StreamedBlob
from composefs_async.progress import (
    BytesRead,
    LayerDone,
    LayerSkipped,
    LayerStarted,
    ObjectsStored,
    ProgressEvent,
    is_intermediate,
)
from composefs_async.repository import Repository, state_of
from composefs_async.results import ImportStats

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

STAGES = {"unpack", "hash", "split", "store", "finish"}
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
PIECE = 512 << 10


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed * 1_000_003 + size).randbytes(size)


def archive(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def statistics(result: LayerResult) -> ImportStats:
    """Without the times, whose keys are known and whose values are not."""
    assert set(result.stats.seconds) <= STAGES
    assert all(seconds >= 0 for seconds in result.stats.seconds.values())
    values = {name: getattr(result.stats, name) for name in ImportStats.__dataclass_fields__ if name != "seconds"}
    return ImportStats(**values)


def names(path: Path) -> list[str]:
    """Everything of a repository but its objects; temporary files would be here as well."""
    below = [str(entry.relative_to(path)) for entry in path.rglob("*") if not entry.is_dir()]
    return sorted(name for name in below if not name.startswith("objects/") or "." in name)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        await anyio.lowlevel.checkpoint()
        yield data[at : at + size]


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Insecure, at ``tmp_path / "repo"``; the test closes it."""
    return Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True)


TAR = archive({"usr/a": content(5000), "usr/b": b"small", "usr/c": content(PIECE + 1), "usr/e": b""})
DIFF_ID = digest(TAR)


def merged(repo: Repository, diff_id: str) -> str:
    return digest(b"".join(repo.merge_splitstream(f"oci-layer-{diff_id}")))


# -- sources -----------------------------------------------------------------------------------


class Iterable:
    """Not an iterator: iterating makes a generator that nobody else could close."""

    def __init__(self, data: bytes) -> None:
        self.data, self.closed = data, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for at in range(0, len(self.data), 100_000):
                await anyio.lowlevel.checkpoint()
                yield self.data[at : at + 100_000]
        finally:
            self.closed = True


class Stream(ByteReceiveStream):
    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.data:
            raise anyio.EndOfStream
        piece, self.data = self.data[:max_bytes], self.data[max_bytes:]
        return piece

    async def aclose(self) -> None:
        raise AssertionError("the source stays open")


async def from_anyio(path: Path, data: bytes, stack: AsyncExitStack) -> Any:
    return await stack.enter_async_context(await anyio.open_file(path, "rb"))


async def from_aiofiles(path: Path, data: bytes, stack: AsyncExitStack) -> Any:
    return await stack.enter_async_context(aiofiles.open(path, "rb"))


async def from_local(path: Path, data: bytes, stack: AsyncExitStack) -> Any:
    file = stack.enter_context(path.open("rb"))
    return LocalBlob(file.fileno(), len(data), str(path))


async def from_generator(path: Path, data: bytes, stack: AsyncExitStack) -> Any:
    return pieces(data, 70_000)


async def from_single_bytes(path: Path, data: bytes, stack: AsyncExitStack) -> Any:

    async def generate() -> AsyncIterator[bytes]:
        for at in range(5000):
            yield data[at : at + 1]
        yield b""  # is no end
        yield data[5000:]

    return generate()


async def from_iterable(path: Path, data: bytes, stack: AsyncExitStack) -> Any:
    return Iterable(data)


async def from_stream(path: Path, data: bytes, stack: AsyncExitStack) -> Any:
    return Stream(data)


async def from_streamed_blob(path: Path, data: bytes, stack: AsyncExitStack) -> Any:
    return StreamedBlob(pieces(data, 99_999), len(data))


SOURCES = [
    from_anyio,
    from_aiofiles,
    from_local,
    from_generator,
    from_single_bytes,
    from_iterable,
    from_stream,
    from_streamed_blob,
]
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "gzip members": lambda data: b"".join(
        gzip.compress(data[at : at + 99_999], 1) for at in range(0, len(data), 99_999)
    ),
    "zstd": zstd.compress,
    "zstd frames": lambda data: (
        SKIPPABLE + zstd.compress(data[:9999]) + SKIPPABLE * 2 + zstd.compress(data[9999:]) + SKIPPABLE
    ),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.usefixtures("no_blocking")
async def test_layer_comes_from_any_source(
    source: Callable[..., Any], tmp_path: Path, repo: Repository, anyio_backend_name: str
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(TAR, 1))
    with repo:
        if source is from_aiofiles and anyio_backend_name != "asyncio":
            pytest.skip("aiofiles works with asyncio only")
        async with AsyncExitStack() as stack:
            result = await import_layer(repo, DIFF_ID, await source(path, path.read_bytes(), stack))
        assert await anyio.to_thread.run_sync(merged, repo, DIFF_ID) == DIFF_ID
        assert result.stats.bytes_read == path.stat().st_size
    assert names(tmp_path / "repo") == ["meta.json", f"streams/oci-layer-{DIFF_ID}"]


async def test_a_file_that_is_not_awaited_is_refused_with_what_there_is_for_it(repo: Repository) -> None:
    with repo:
        with pytest.raises(TypeError, match=r"a source is needed that is awaited.*oci\.LocalBlob"):
            await import_layer(repo, DIFF_ID, io.BytesIO(TAR))  # type: ignore[arg-type]
        assert repo.has_stream(f"oci-layer-{DIFF_ID}") is None


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("local", [True, False], ids=["local", "streamed"])
async def test_packing_is_recognized_and_makes_no_difference(
    packing: str, local: bool, tmp_path: Path, repo: Repository
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(PACKINGS[packing](TAR))
    with repo, path.open("rb") as file:
        source = LocalBlob(file.fileno(), path.stat().st_size, str(path)) if local else pieces(path.read_bytes(), 4096)
        result = await import_layer(repo, DIFF_ID, source)
        assert merged(repo, DIFF_ID) == DIFF_ID
        with Repository.init(tmp_path / "other", algorithm=Algorithm.SHA256, insecure=True) as other:
            same = await import_layer(other, DIFF_ID, pieces(TAR, 1 << 20))
    assert result.stream_id == same.stream_id
    external = [5000, PIECE + 1]
    assert statistics(result) == ImportStats(
        objects_stored=2,
        bytes_stored=sum(external),
        bytes_inline=len(TAR) - sum(external),
        layers_imported=1,
        bytes_read=path.stat().st_size,
    )
    assert set(result.stats.seconds) == STAGES


@pytest.mark.parametrize(
    ("media_type", "packing"),
    [
        ("application/vnd.oci.image.layer.v1.tar", "none"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "zstd"),
    ],
)
async def test_media_type_decides_if_given(media_type: str, packing: str, repo: Repository) -> None:
    with repo:
        await import_layer(repo, DIFF_ID, pieces(PACKINGS[packing](TAR), 99_999), media_type=media_type)
        assert merged(repo, DIFF_ID) == DIFF_ID


@pytest.mark.parametrize("name", ["sha384", "sha512"])
async def test_diff_id_may_be_of_another_algorithm(name: str, repo: Repository) -> None:
    diff_id = f"{name}:{hashlib.new(name, TAR).hexdigest()}"
    with repo:
        await import_layer(repo, diff_id, pieces(TAR, 99_999))
        assert merged(repo, diff_id) == DIFF_ID


# -- sizes -------------------------------------------------------------------------------------

SIZES = [0, 1, 64, 65, 511, 512, 513, 4095, 4096, 4097, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 << 20, (3 << 20) + 7]


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_files_of_all_sizes_become_the_objects_they_should(algorithm: Algorithm, tmp_path: Path) -> None:
    files = {f"f{size}": content(size) for size in SIZES}
    packed = archive(files)
    with Repository.init(tmp_path / "repo", algorithm=algorithm, insecure=True) as repo:
        result = await import_layer(repo, digest(packed), pieces(packed, 1 << 20))
        for data in files.values():
            path = tmp_path / "repo/objects" / fsverity.digest(data, algorithm).path
            assert path.exists() == (len(data) > 64)
            if len(data) > 64:
                assert path.read_bytes() == data
        assert merged(repo, digest(packed)) == digest(packed)
    external = sum(size for size in SIZES if size > 64)
    assert statistics(result) == ImportStats(
        objects_stored=sum(size > 64 for size in SIZES),
        bytes_stored=external,
        bytes_inline=len(packed) - external,
        layers_imported=1,
        bytes_read=len(packed),
    )


@pytest.mark.parametrize("offset", [-512, -1, 0, 1, 512])
async def test_file_may_end_where_a_chunk_does(offset: int, repo: Repository) -> None:
    """A chunk is 2 MiB; the header of the second file falls on, before and behind its end."""
    packed = archive({"a": content(_CHUNK - 512 + offset), "b": content(700), "c": content(1)})
    with repo:
        result = await import_layer(repo, digest(packed), pieces(packed, 1 << 20))
        assert merged(repo, digest(packed)) == digest(packed)
    assert result.stats.objects_stored == 2


async def test_flushes_begin_while_a_large_layer_is_imported(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the one that publishes has little left to write."""
    monkeypatch.setattr("composefs_async.oci.importing.stages._FLUSH_AFTER", 4 << 20)
    packed = archive({str(number): content(300_000, number) for number in range(100)})
    syncs = state_of(repo).syncs
    with repo:
        await import_layer(repo, digest(packed), pieces(packed, 1 << 20))
        assert 3 <= syncs.count <= 8
        assert merged(repo, digest(packed)) == digest(packed)


@pytest.mark.parametrize("size", [_CHUNK, 2 * _CHUNK, _CHUNK - 1, _CHUNK + 1])
async def test_archive_may_have_exactly_the_size_of_chunks(size: int, repo: Repository) -> None:
    """What follows the end of the archive belongs to the layer."""
    packed = archive({"a": content(1000)})
    packed += bytes(size - len(packed))
    with repo:
        result = await import_layer(repo, digest(packed), pieces(gzip.compress(packed, 1), 1 << 20))
        assert merged(repo, digest(packed)) == digest(packed)
    assert result.stats.bytes_inline == size - 1000


@pytest.mark.parametrize(
    "packed",
    [b"", gzip.compress(b"", mtime=0), zstd.compress(b""), bytes(1024)],
    ids=["plain", "gzip", "zstd", "zeros"],
)
async def test_layer_may_be_empty(packed: bytes, repo: Repository) -> None:
    diff_id = digest(packed if not any(packed[:1]) else b"")
    with repo:
        result = await import_layer(repo, diff_id, pieces(packed, 100))
        assert merged(repo, diff_id) == diff_id
    assert (result.stats.objects_stored, result.stats.bytes_read) == (0, len(packed))


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_empty_layer_has_the_stream_that_the_other_tools_give_it(algorithm: Algorithm, tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo", algorithm=algorithm, insecure=True) as repo:
        result = await import_layer(repo, digest(b""), pieces(b"", 1))
    if algorithm is Algorithm.SHA256:
        known = "c93c6d44a4dab11e45eb0b7c78736f03ec5276cc9d18524dd21a96591d17351b"
        assert result.stream_id == ObjectId.from_hex(known)
    assert result.stream_id.algorithm is algorithm


# -- objects that are there --------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, PIECE + 4096], ids=["carried", "large"])
async def test_same_file_twice_is_stored_once_and_counted_twice(size: int, repo: Repository) -> None:
    packed = archive({"a": content(size), "b": content(size)})
    with repo:
        result = await import_layer(repo, digest(packed), pieces(packed, 1 << 20))
    stats = result.stats
    counted = (stats.objects_stored, stats.objects_present, stats.bytes_stored, stats.bytes_present)
    assert counted == (1, 1, size, size)


@pytest.mark.parametrize("size", [1000, PIECE + 4096], ids=["carried", "large"])
@pytest.mark.parametrize("wrong", [b"", b"x", content(2 << 20)], ids=len)
async def test_object_of_the_wrong_size_is_replaced_and_counted(
    size: int, wrong: bytes, tmp_path: Path, repo: Repository
) -> None:
    data = content(size)
    packed = archive({"a": data})
    path = tmp_path / "repo/objects" / fsverity.digest(data, Algorithm.SHA256).path
    path.parent.mkdir(parents=True)
    path.write_bytes(wrong)
    events: list[ProgressEvent] = []
    with repo:
        result = await import_layer(repo, digest(packed), pieces(packed, 1 << 20), progress=events.append)
    assert path.read_bytes() == data
    assert statistics(result) == ImportStats(
        objects_replaced=1,
        bytes_stored=size,
        bytes_inline=len(packed) - size,
        layers_imported=1,
        bytes_read=len(packed),
    )
    assert [event for event in events if isinstance(event, ObjectsStored)][-1] == ObjectsStored(digest(packed), 1, 0)


# -- published, present, twice -----------------------------------------------------------------


async def refuse() -> AsyncIterator[bytes]:
    raise AssertionError("this must not be read")
    yield b""


async def test_present_layer_is_not_read_and_nothing_changes(tmp_path: Path, repo: Repository) -> None:
    with repo:
        first = await import_layer(repo, DIFF_ID, pieces(TAR, 1 << 20))
        before = {entry: entry.lstat() for entry in (tmp_path / "repo").rglob("*")}
        source = refuse()
        events: list[ProgressEvent] = []
        again = await import_layer(repo, DIFF_ID, source, progress=events.append)
        await source.aclose()  # type: ignore[attr-defined]
    assert again == LayerResult(DIFF_ID, first.stream_id, True, ImportStats(layers_present=1))
    assert events == [LayerSkipped(DIFF_ID)]
    after = {entry: entry.lstat() for entry in (tmp_path / "repo").rglob("*")}
    assert {entry: (status.st_mtime_ns, status.st_ino) for entry, status in after.items()} == {
        entry: (status.st_mtime_ns, status.st_ino) for entry, status in before.items()
    }


async def test_reference_is_published_also_for_a_present_layer(tmp_path: Path, repo: Repository) -> None:
    with repo:
        await import_layer(repo, DIFF_ID, pieces(TAR, 1 << 20), reference="mine/first")
        source = refuse()
        await import_layer(repo, DIFF_ID, source, reference="second")
        await source.aclose()  # type: ignore[attr-defined]
        name = f"oci-layer-{DIFF_ID}"
        assert repo.named_streams() == [("mine/first", name), ("second", name)]


async def test_stored_stream_that_cannot_be_read_is_made_again(tmp_path: Path, repo: Repository) -> None:
    with repo:
        first = await import_layer(repo, DIFF_ID, pieces(TAR, 1 << 20))
        path = tmp_path / "repo/objects" / first.stream_id.path
        path.chmod(0o644)
        path.write_bytes(b"damaged")
        again = await import_layer(repo, DIFF_ID, pieces(TAR, 1 << 20))
        assert (again.stream_id, again.present) == (first.stream_id, False)
        assert merged(repo, DIFF_ID) == DIFF_ID


@pytest.mark.parametrize("handles", [1, 2])
async def test_layer_wanted_twice_at_once_is_read_once(handles: int, tmp_path: Path, repo: Repository) -> None:
    read: list[int] = []
    results: list[LayerResult] = []
    wanted = anyio.Event()
    events: dict[int, list[ProgressEvent]] = {0: [], 1: []}

    async def source(number: int) -> AsyncIterator[bytes]:
        read.append(number)
        await wanted.wait()  # by the other, too, before it is there
        async for piece in pieces(TAR, 50_000):
            yield piece

    def hear(number: int, event: ProgressEvent) -> None:
        events[number].append(event)
        if all(events.values()):
            wanted.set()

    async def work(number: int, handle: Repository) -> None:
        async with AsyncExitStack() as stack:
            chunks = source(number)
            stack.push_async_callback(chunks.aclose)  # type: ignore[attr-defined]
            results.append(await import_layer(handle, DIFF_ID, chunks, progress=partial(hear, number)))

    with repo, Repository.open_path(tmp_path / "repo") as second:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, 0, repo)
            tasks.start_soon(work, 1, second if handles == 2 else repo)
        assert merged(repo, DIFF_ID) == DIFF_ID
    assert len(read) == 1
    assert sorted(result.present for result in results) == [False, True]
    assert results[0].stream_id == results[1].stream_id
    finals = {tuple(type(event) for event in events[number] if not is_intermediate(event)) for number in (0, 1)}
    assert finals == {(LayerStarted, LayerDone), (LayerStarted, LayerSkipped)}


async def test_waiting_import_takes_over_when_the_first_fails(repo: Repository) -> None:
    begun, waiting = anyio.Event(), anyio.Event()
    failures: list[BaseException] = []

    async def broken() -> AsyncIterator[bytes]:
        yield TAR[:1000]
        begun.set()
        await waiting.wait()
        raise ConnectionResetError("gone")

    async def first() -> None:
        try:
            await import_layer(repo, DIFF_ID, broken())
        except ConnectionResetError as error:
            failures.append(error)

    def heard(event: ProgressEvent) -> None:
        if isinstance(event, LayerStarted):
            waiting.set()

    with repo:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await begun.wait()
            result = await import_layer(repo, DIFF_ID, pieces(TAR, 1 << 20), progress=heard)
        assert merged(repo, DIFF_ID) == DIFF_ID
    assert len(failures) == 1
    assert not result.present


async def test_exclusive_operation_has_to_wait_for_the_import(repo: Repository) -> None:
    seen: list[str] = []

    async def source() -> AsyncIterator[bytes]:
        yield TAR[:1000]
        with pytest.raises(RepositoryInUseError), repo.exclusive("gc", timeout=0):
            pass
        seen.append("refused")
        yield TAR[1000:]

    with repo:
        await import_layer(repo, DIFF_ID, source())
        with repo.exclusive("gc", timeout=0):
            seen.append("allowed")
    assert seen == ["refused", "allowed"]


# -- events ------------------------------------------------------------------------------------


async def test_events_come_in_order_and_count_up(repo: Repository) -> None:
    packed = archive({f"f{number}": content(PIECE // 2, number) for number in range(20)})
    events: list[ProgressEvent] = []
    blob = StreamedBlob(pieces(packed, 1 << 20), len(packed))
    with repo:
        result = await import_layer(repo, digest(packed), blob, progress=events.append)
    diff_id = digest(packed)
    assert events[0] == LayerStarted(diff_id, diff_id, len(packed))
    assert events[-1] == LayerDone(diff_id, result.stats)
    assert {type(event) for event in events[1:-1]} == {BytesRead, ObjectsStored}
    fetched = [event.fetched for event in events if isinstance(event, BytesRead)]
    stored = [event.stored for event in events if isinstance(event, ObjectsStored)]
    assert (fetched, fetched[-1]) == (sorted(fetched), len(packed))
    assert (stored, stored[-1]) == (sorted(stored), 20)
    assert {event.total for event in events if isinstance(event, BytesRead)} == {len(packed)}


class StopError(Exception):
    pass


@pytest.mark.parametrize("at", [LayerStarted, BytesRead, ObjectsStored, LayerDone])
async def test_error_of_the_callback_ends_the_import_cleanly(
    at: type[ProgressEvent], tmp_path: Path, repo: Repository
) -> None:
    def heard(event: ProgressEvent) -> None:
        if isinstance(event, at):
            raise StopError

    with repo:
        with pytest.raises(StopError):
            await import_layer(repo, DIFF_ID, Stream(TAR), progress=heard)
        assert names(tmp_path / "repo") == ["meta.json"]
        await import_layer(repo, DIFF_ID, Stream(TAR))


# -- what is refused ---------------------------------------------------------------------------

GZIPPED = gzip.compress(TAR, 1, mtime=0)
ZSTD = zstd.compress(TAR)


def damaged(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + 64]) + data[at + 64 :]


REFUSED: dict[str, tuple[bytes, type[Exception]]] = {
    "another tar": (archive({"usr/a": content(9)}), DigestMismatchError),
    "one byte more": (TAR + b"\0", DigestMismatchError),
    "nothing": (b"", DigestMismatchError),
    "tar cut in a file": (TAR[:3000], TarError),
    "checksum": (b"b" + TAR[1:], TarError),
    "no tar": (content(2000), TarError),
    "gzip cut": (GZIPPED[:-100], CompressionError),
    "gzip damaged": (damaged(GZIPPED), CompressionError),
    "gzip with something behind": (GZIPPED + b"x", CompressionError),
    "zstd cut": (ZSTD[:-100], CompressionError),
    "zstd damaged": (ZSTD[:4] + b"\xff" * 8 + ZSTD[12:], CompressionError),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("local", [True, False], ids=["local", "streamed"])
@pytest.mark.usefixtures("no_blocking")
async def test_bad_input_is_refused_and_leaves_no_name(
    case: str, local: bool, tmp_path: Path, repo: Repository
) -> None:
    data, error = REFUSED[case]
    path = tmp_path / "layer"
    path.write_bytes(data)
    with repo, path.open("rb") as file:
        source = LocalBlob(file.fileno(), len(data), str(path)) if local else Iterable(data)
        with pytest.raises(error) as caught:
            await import_layer(repo, DIFF_ID, source)
        assert names(tmp_path / "repo") == ["meta.json"]
        assert isinstance(source, LocalBlob) or source.closed
        await import_layer(repo, DIFF_ID, Stream(TAR))
    if error is DigestMismatchError:
        assert isinstance(caught.value, DigestMismatchError)
        assert (caught.value.expected, caught.value.found) == (DIFF_ID, digest(data))
    else:
        assert isinstance(caught.value, TarError | CompressionError)
        assert 0 <= caught.value.offset <= len(data)
        assert caught.value.name == f"layer {DIFF_ID}"


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (Limits(max_layer_size=len(TAR) - 1), CompressionError),
        (Limits(max_file_size=PIECE), TarError),
    ],
)
@pytest.mark.parametrize("packing", ["none", "gzip", "zstd"])
async def test_limits_hold_and_can_be_raised(
    limits: Limits, error: type[Exception], packing: str, tmp_path: Path, repo: Repository
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(PACKINGS[packing](TAR))
    with repo, path.open("rb") as file:
        for media_type in (None, "application/vnd.oci.image.layer.v1.tar" if packing == "none" else None):
            os.lseek(file.fileno(), 0, 0)
            with pytest.raises(error):
                await import_layer(
                    repo,
                    DIFF_ID,
                    LocalBlob(file.fileno(), path.stat().st_size, str(path)),
                    limits=limits,
                    media_type=media_type,
                )
        assert names(tmp_path / "repo") == ["meta.json"]
        await import_layer(
            repo, DIFF_ID, Stream(path.read_bytes()), limits=Limits(max_layer_size=len(TAR), max_file_size=PIECE + 1)
        )


async def test_bomb_ends_at_the_ratio(tmp_path: Path, repo: Repository) -> None:
    head = tarfile.TarInfo("zeros")
    head.size = 200 << 20
    bomb = zstd.compress(head.tobuf() + bytes(80 << 20))
    with repo:
        with pytest.raises(CompressionError, match="limit of 1000"):
            await import_layer(repo, DIFF_ID, Stream(bomb))
        with pytest.raises(TarError, match="ends inside"):  # the limit has been raised, and the tar is cut
            await import_layer(repo, DIFF_ID, Stream(bomb), limits=Limits(max_ratio=1e9))
    assert names(tmp_path / "repo") == ["meta.json"]


@pytest.mark.parametrize(
    "diff_id", ["", "x", "sha256:12", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:../../x", DIFF_ID + "/.."]
)
async def test_malformed_diff_id_is_refused_before_anything_is_read(diff_id: str, repo: Repository) -> None:
    with repo, pytest.raises(OciError):
        await import_layer(repo, diff_id, Stream(TAR))


@pytest.mark.parametrize("reference", ["", "..", "a/../b", "/a", "a//b", "a\0", "n" * 256])
async def test_bad_reference_is_refused_before_anything_is_read(reference: str, repo: Repository) -> None:
    source = Stream(TAR)
    with repo, pytest.raises(InvalidNameError):
        await import_layer(repo, DIFF_ID, source, reference=reference)
    assert source.data == TAR


async def test_media_type_of_no_tar_is_refused(repo: Repository) -> None:
    with repo, pytest.raises(OciError, match="no tar layer"):
        await import_layer(repo, DIFF_ID, Stream(TAR), media_type="application/json")


async def test_error_of_a_local_file_names_it(tmp_path: Path, repo: Repository) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with repo, pytest.raises(IsADirectoryError) as caught:
            await import_layer(repo, DIFF_ID, LocalBlob(fd, 7, "the/blob"))
    finally:
        os.close(fd)
    assert caught.value.filename == "the/blob"


async def test_closed_repository_is_refused(repo: Repository) -> None:
    repo.close()
    with pytest.raises(ValueError, match="is closed"):
        await import_layer(repo, DIFF_ID, Stream(TAR))


@pytest.mark.parametrize("form", ["file", "stream"])
async def test_packed_bytes_that_unpack_to_nothing_do_not_gather_in_memory(
    repo: Repository, tmp_path: Path, form: str
) -> None:
    """Gigabytes of empty frames may stand before, between and behind the rest."""
    tar = bytes(10_240)
    empty = b"\x50\x2a\x4d\x18" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20)
    path = tmp_path / "layer"
    path.write_bytes(empty * 40 + zstd.compress(tar[:5000]) + empty * 40 + zstd.compress(tar[5000:]) + empty * 40)
    diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
    packed_digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    most = 0
    async with repo, await anyio.open_file(path, "rb") as file:
        source = LocalBlob(file.fileno(), path.stat().st_size, str(path)) if form == "file" else byte_source(file)
        unpacker = Unpacker(state_of(repo), source, diff_id, packed_digest=packed_digest)
        view, unpacked = memoryview(bytearray(1 << 20)), b""
        while not unpacker.ended:
            size, packed = await unpacker.fill(view)
            unpacker.hash(packed, view[:size])
            unpacked += view[:size]
            most = max(most, sum(map(len, packed)))
        unpacker.verify()
        assert unpacked == tar
        assert 1 << 20 < most <= 8 << 20
        with path.open("rb") as local:
            blob = LocalBlob(local.fileno(), path.stat().st_size, str(path))
            assert not (await import_layer(repo, diff_id, blob)).present
