"""Fixtures for splitstreams: a sink that is a dict, digests of small files, hand-made stream files."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.results import StoredObject, StoreOutcome
from composefs_async.splitstream import Buffer, BytesSource, SplitstreamReader, SplitstreamWriter
from composefs_async.splitstream._zstd import SectionCompressor

VECTORS = Path(__file__).parent.parent / "vectors" / "splitstream"


def small_verity(data: bytes, algorithm: Algorithm) -> ObjectId:
    """The fs-verity digest of a file of at most one block (linux/fsverity.h, struct fsverity_descriptor)."""
    assert len(data) <= 4096
    digest = getattr(hashlib, algorithm.value)
    root = digest(data.ljust(4096, b"\0")).digest() if data else b""
    descriptor = struct.pack("<BBBBIQ64s32s144x", 1, algorithm.number, 12, 0, 0, len(data), root, b"")
    return ObjectId(digest(descriptor).digest())


class DictSink:
    """Keeps objects in a dict, named by a plain digest unless they are small enough for the real one."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.objects: dict[ObjectId, bytes] = {}

    def ensure_object(self, data: Buffer, /) -> StoredObject:
        content = bytes(data)
        if len(content) <= 4096:
            object_id = small_verity(content, self.algorithm)
        else:
            object_id = ObjectId(hashlib.new(self.algorithm.value, content).digest())
        outcome = StoreOutcome.PRESENT if object_id in self.objects else StoreOutcome.STORED
        self.objects[object_id] = content
        return StoredObject(object_id, len(content), outcome)

    def open(self, object_id: ObjectId) -> list[bytes]:
        return [self.objects[object_id]]


def pack_section(data: bytes) -> bytes:
    compressor = SectionCompressor()
    return compressor.compress(memoryview(data)) + compressor.finish()


def craft_stream(  # every part of the file can be made wrong
    *,
    algorithm: Algorithm = Algorithm.SHA256,
    magic: bytes = b"SplitStream",
    version: int = 0,
    flags: int = 0,
    number: int | None = None,
    lg_blocksize: int = 12,
    info_range: tuple[int, int] | None = None,
    info_extra: bytes = b"",
    content_type: int = 0,
    stream_size: int = 0,
    stream_refs: bytes = b"",
    object_refs: bytes = b"",
    names: bytes = b"",
    body: bytes = b"",
    packed_names: bytes | None = None,
    packed_body: bytes | None = None,
    ranges: dict[str, tuple[int, int]] | None = None,
    order: tuple[str, ...] = ("stream_refs", "object_refs", "named_refs", "stream"),
    tail: bytes = b"",
) -> bytes:
    contents = {
        "stream_refs": stream_refs,
        "object_refs": object_refs,
        "named_refs": pack_section(names) if packed_names is None else packed_names,
        "stream": pack_section(body) if packed_body is None else packed_body,
    }
    at = 112 + len(info_extra)
    places: dict[str, tuple[int, int]] = {}
    for section in order:
        places[section] = (at, at + len(contents[section]))
        at += len(contents[section])
    places |= ranges or {}
    start, end = info_range or (32, 112 + len(info_extra))
    used = algorithm.number if number is None else number
    header = struct.pack("<11sBHBBQQ", magic, version, flags, used, lg_blocksize, start, end)
    in_info = [n for section in ("stream_refs", "object_refs", "stream", "named_refs") for n in places[section]]
    info = struct.pack("<10Q", *in_info, content_type, stream_size)
    return b"".join((header, info, info_extra, *(contents[section] for section in order), tail))


def write_again(data: bytes) -> bytes:
    """Read a stream and write what was read, with the names in the order of their streams."""
    reader = SplitstreamReader(BytesSource(data))
    writer = SplitstreamWriter(reader.algorithm, reader.content_type)
    for stream_id in reader.stream_refs:
        for name in (name for name, found in reader.named_refs.items() if found == stream_id):
            writer.add_named_stream_ref(name, stream_id)
    for chunk in reader.chunks():
        if isinstance(chunk, ObjectId):
            writer.write_reference(chunk)
        else:
            writer.write_inline(chunk)
    writer.add_external_size(reader.stream_size - writer.stream_size)
    return writer.done()


@pytest.fixture(scope="session")
def verity() -> Callable[[bytes, Algorithm], ObjectId]:
    return small_verity


@pytest.fixture(scope="session")
def make_sink() -> type[DictSink]:
    return DictSink


@pytest.fixture(scope="session")
def pack() -> Callable[[bytes], bytes]:
    return pack_section


@pytest.fixture(scope="session")
def craft() -> Callable[..., bytes]:
    return craft_stream


@pytest.fixture(scope="session")
def rewrite() -> Callable[[bytes], bytes]:
    return write_again


@pytest.fixture(scope="session")
def golden() -> dict[str, dict[str, Any]]:
    """What index.json says of each golden stream, and its bytes as ``data``."""
    index: dict[str, dict[str, Any]] = json.loads((VECTORS / "index.json").read_text())
    return {name: facts | {"data": (VECTORS / name).read_bytes()} for name, facts in index.items()}


@pytest.fixture(scope="session")
def golden_objects() -> Callable[[ObjectId], list[bytes]]:
    return lambda object_id: [(VECTORS / "objects" / object_id.hex()).read_bytes()]


def chunk_header(value: int) -> bytes:
    return struct.pack("<q", value)


@pytest.fixture(scope="session")
def chunk() -> Callable[[int], bytes]:
    """The header of a chunk: an index, or minus the length of what follows."""
    return chunk_header
