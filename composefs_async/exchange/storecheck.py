"""Checking a store: blobs against their names, members of tables against their ids, and what names need.

Owns what can be found.  Does not own repair: a blob that is damaged is published again from a repository that has it.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

from .. import fsverity
from .._aio.to_thread import in_checked_thread
from .._zstd import zstd
from ..digest import Algorithm, ObjectId
from ..errors import BlobMissingError, ComposefsError, DigestMismatchError, FormatError, StoreFormatError
from ..progress import CheckProgress, ProgressCallback
from .documents import Descriptor, Manifest, blob_key, name_of_ref, parse_manifest, parse_ref
from .store import Store
from .table import KEY_SIZE, Coding, Entry

__all__ = ["StoreCheck", "StoreFinding", "check_store", "read_member", "unpacked_member"]

_SPOOL = 32 << 20
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class StoreFinding:
    """Something in a store that is not as it should be."""

    kind: str
    """``reference-damaged``, ``manifest-damaged``, ``table-damaged``, ``config-damaged``, ``blob-missing``,
    ``blob-damaged`` or ``member-damaged``."""
    key: str
    """Where: the key in the store."""
    detail: str
    names: tuple[str, ...] = ()
    """Names that need it."""


@dataclass(slots=True)
class StoreCheck:
    """The result of a check."""

    names: int = 0
    blobs: int = 0
    """Blobs that names need and that have been read."""
    members: int = 0
    bytes: int = 0
    findings: list[StoreFinding] = field(default_factory=list[StoreFinding])

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.findings


@dataclass(slots=True)
class _Blob:
    size: int
    algorithm: Algorithm | None = None
    names: list[str] = field(default_factory=list[str])
    entries: dict[Entry, None] = field(default_factory=dict[Entry, None])


async def check_store(
    store: Store, *, sample: float = 1.0, progress: ProgressCallback | None = None, seed: int | None = None
) -> StoreCheck:
    """Read what names need and compare all of it with its digests.  Damage is in the result and never raised.

    Args:
        sample: the share of packs that are read; tables and manifests are always.
        seed: chooses the same sample again.

    Raises:
        StoreError: the store cannot be read.
    """
    await store.describe()
    report = progress or (lambda event: None)
    result = StoreCheck()
    blobs: dict[str, _Blob] = {}
    await in_checked_thread(lambda check: _read_names(store, result, blobs, check))
    rnd = random.Random(seed)
    chosen = [digest for digest in sorted(blobs) if not blobs[digest].entries or rnd.random() < sample]
    for number, digest in enumerate(chosen):
        await in_checked_thread(
            lambda check, digest=digest: _check_blob(store, digest, blobs[digest], result, check)  # type: ignore[misc]
        )
        report(CheckProgress("objects", number + 1, len(chosen), result.bytes))
    return result


def _read_names(store: Store, result: StoreCheck, blobs: dict[str, _Blob], check: Callable[[], object]) -> None:
    seen: set[str] = set()
    for info in store.backend.list("refs/"):
        check()
        name = name_of_ref(info.key)
        stored = store.backend.read(info.key, 1 << 20)
        if stored is None:
            continue
        try:
            ref = parse_ref(stored.data, name)
            if ref.deleted:
                continue
            result.names += 1
            manifest = parse_manifest(ref.manifest, ref.digest) if ref.manifest else store.read_manifest(ref.digest)
        except (FormatError, DigestMismatchError) as error:
            result.findings.append(StoreFinding("reference-damaged", info.key, str(error), (name,)))
            continue
        except BlobMissingError as error:
            result.findings.append(StoreFinding("blob-missing", blob_key(ref.digest), str(error), (name,)))
            continue
        _note(blobs, Descriptor("", manifest.digest, len(manifest.raw)), name)
        for each in (manifest.config, manifest.table, *manifest.blobs):
            _note(blobs, each, name)
        if manifest.digest not in seen:
            seen.add(manifest.digest)
            _read_table(store, manifest, name, result, blobs)


def _note(blobs: dict[str, _Blob], descriptor: Descriptor, name: str) -> None:
    blobs.setdefault(descriptor.digest, _Blob(descriptor.size)).names.append(name)


def _read_table(store: Store, manifest: Manifest, name: str, result: StoreCheck, blobs: dict[str, _Blob]) -> None:
    try:
        config = store.read_config(manifest)
        table = store.read_table(manifest, config)
    except BlobMissingError:
        return  # found when the blob is looked at
    except (FormatError, DigestMismatchError) as error:
        key = blob_key(manifest.table.digest)
        result.findings.append(StoreFinding("table-damaged", key, str(error), (name,)))
        return
    for at in range(len(table)):
        entry = table.entry(at)
        blob = blobs[manifest.blobs[entry.blob].digest]
        blob.algorithm = config.algorithm
        blob.entries[entry._replace(blob=0, kind=0)] = None


def _check_blob(store: Store, digest: str, blob: _Blob, result: StoreCheck, check: Callable[[], object]) -> None:
    key, names = blob_key(digest), tuple(dict.fromkeys(blob.names))
    result.blobs += 1
    hasher, size = hashlib.sha256(), 0
    with tempfile.SpooledTemporaryFile(_SPOOL, prefix="composefs-async-check-") as spool:
        try:
            for piece in store.backend.get(key):
                check()
                hasher.update(piece)
                size += len(piece)
                if blob.entries and size <= blob.size:
                    spool.write(piece)
        except BlobMissingError:
            result.findings.append(StoreFinding("blob-missing", key, "it is not there", names))
            return
        result.bytes += size
        if f"sha256:{hasher.hexdigest()}" != digest:
            detail = f"it has {size} bytes with the digest sha256:{hasher.hexdigest()}"
            result.findings.append(StoreFinding("blob-damaged", key, detail, names))
        for entry in sorted(blob.entries, key=lambda each: each.offset):
            check()
            result.members += 1
            assert blob.algorithm is not None
            try:
                _check_member(spool, entry, blob.algorithm)
            except ComposefsError as error:
                what = f"object {entry.key.hex()}… at byte {entry.offset}: {error}"
                result.findings.append(StoreFinding("member-damaged", key, what, names))


def _check_member(file: IO[bytes], entry: Entry, algorithm: Algorithm) -> None:
    hasher = fsverity.Hasher(algorithm)
    for piece in unpacked_member(read_member(file, entry), entry):
        hasher.update(piece)
    found: ObjectId = hasher.id()
    if found[:KEY_SIZE] != entry.key:
        raise DigestMismatchError("it", f"{entry.key.hex()}…", found.hex())


def read_member(file: IO[bytes], entry: Entry) -> Iterator[bytes]:
    """What is stored of an entry, out of a file that has its blob.

    Raises:
        StoreFormatError: the file is too short.
    """
    file.seek(entry.offset)
    left = entry.stored
    while left and (piece := file.read(min(_PIECE, left))):
        left -= len(piece)
        yield piece
    if left:
        raise StoreFormatError("it", "the blob is too short for it")


def unpacked_member(pieces: Iterator[bytes], entry: Entry) -> Iterator[bytes]:
    """The object of an entry, at most as many bytes as the table says.

    Raises:
        StoreFormatError
    """
    if entry.coding == Coding.RAW:
        yield from pieces
        return
    decompressor, size = zstd.ZstdDecompressor(), 0
    try:
        for piece in pieces:
            data = piece
            while not decompressor.eof:
                content = decompressor.decompress(data, _PIECE)
                size += len(content)
                if size > entry.size:
                    raise StoreFormatError("it", f"it unpacks to more than {entry.size} bytes")
                yield content
                data = b""
                if decompressor.needs_input:
                    break
    except zstd.ZstdError as error:
        raise StoreFormatError("it", f"it does not unpack: {error}") from None
    if size != entry.size or not decompressor.eof:
        raise StoreFormatError("it", f"it unpacks to {size} bytes, not {entry.size}")
