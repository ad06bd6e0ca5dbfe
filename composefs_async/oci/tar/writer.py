"""Layers as they are shipped: tar archives of real files, packed and hashed in one pass.

Owns packing for `layout_writer`, and making archives with the standard library's `tarfile`.  Does not own
reading archives (`split`) nor unpacking.  Everything here blocks.

The same calls give the same bytes, with one limit: gzip and zstd also depend on the versions of zlib-ng and
libzstd, and zlib-ng's output on the kind of processor.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from zlib_ng import zlib_ng

from ..._zstd import zstd
from ..documents import Descriptor, LayerCompression

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["LayerSink", "WrittenLayer", "tar_directories", "tar_paths"]


_CHUNK = 1 << 20


class _Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A packed layer and the digest of what it unpacks to."""

    descriptor: Descriptor
    diff_id: str


class LayerSink:
    """Takes the bytes of a tar archive, packs them and hashes both forms; `OciLayoutWriter.layer` makes one."""

    def __init__(self, file: _Writable, compression: LayerCompression, level: int, member_size: int | None) -> None:
        if member_size is not None and member_size < 1:
            raise ValueError(f"member_size is {member_size}, not positive")
        self._file, self._level = file, level
        self._compression: LayerCompression = compression
        self._member_size = self._room = member_size
        self._tar, self._packed = hashlib.sha256(), hashlib.sha256()
        self._size = 0
        self._pack = _Packer(compression, level)
        self._layer: WrittenLayer | None = None

    @property
    def layer(self) -> WrittenLayer:
        """The finished layer.

        Raises:
            ValueError: the block of `OciLayoutWriter.layer` has not ended.
        """
        if self._layer is None:
            raise ValueError("the layer is not finished")
        return self._layer

    def write(self, data: bytes, /) -> int:
        """Write bytes of the tar, packed if the layer is, and hash both; return how many were taken: all."""
        self._tar.update(data)
        rest = memoryview(data)
        while rest:
            if self._room == 0:
                self._emit(self._pack.end())
                self._pack, self._room = _Packer(self._compression, self._level), self._member_size
            part = rest if self._room is None else rest[: self._room]
            self._emit(self._pack.feed(part))
            rest = rest[len(part) :]
            if self._room is not None:
                self._room -= len(part)
        return len(data)

    def finish(self, media_type: str) -> str:
        """Write what is left and return the digest of the packed layer."""
        self._emit(self._pack.end())
        digest = f"sha256:{self._packed.hexdigest()}"
        self._layer = WrittenLayer(Descriptor(media_type, digest, self._size), f"sha256:{self._tar.hexdigest()}")
        return digest

    def _emit(self, packed: bytes) -> None:
        self._packed.update(packed)
        self._size += len(packed)
        self._file.write(packed)


class _Packer:
    """One gzip member, one zstd frame, or plain bytes."""

    def __init__(self, compression: LayerCompression, level: int) -> None:
        # 31: the largest window, and a gzip header, in which the time is 0 and the name is missing.
        self._gzip = zlib_ng.compressobj(level, zlib_ng.DEFLATED, 31) if compression == "gzip" else None
        self._zstd = zstd.ZstdCompressor(level) if compression == "zstd" else None

    def feed(self, data: memoryview) -> bytes:
        if self._gzip:
            return self._gzip.compress(data)
        return self._zstd.compress(data) if self._zstd else bytes(data)

    def end(self) -> bytes:
        if self._gzip:
            return self._gzip.flush()
        return self._zstd.flush() if self._zstd else b""


def tar_directories(
    directories: Iterable[PathLike[str] | str], out: _Writable, *, root: PathLike[str] | str = "/"
) -> int:
    """Write a tar archive of whole trees, entries sorted by name, and return how many entries it has.

    See `tar_paths`, which does the work.
    """
    return tar_paths((path for directory in directories for path in _walk(Path(directory))), out, root=root)


def tar_paths(paths: Iterable[PathLike[str] | str], out: _Writable, *, root: PathLike[str] | str = "/") -> int:
    """Write a tar archive (PAX) of just these paths, and return how many entries it has.

    Member names are relative to *root*; the directories between it and a path come before the path, once.
    Hard links are kept, sockets left out.  Times are whole seconds, owners are numbers, and extended
    attributes are left out, so that the archive depends on the files alone.
    """
    count = 0

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        nonlocal count
        count += 1
        member.uname = member.gname = ""
        member.mtime = int(member.mtime)
        return member

    base, added = Path(root), {Path(root)}
    with tarfile.open(fileobj=cast("BinaryIO", out), mode="w|", bufsize=_CHUNK, format=tarfile.PAX_FORMAT) as archive:
        for path in map(Path, paths):
            for entry in (*reversed(path.relative_to(base).parents), path.relative_to(base)):
                if base / entry not in added:
                    added.add(base / entry)
                    archive.add(base / entry, arcname=str(entry), recursive=False, filter=plain)
    return count


def _walk(directory: Path) -> Iterator[Path]:
    """The directory and all below it, sorted, without following links."""
    pending = [directory]
    while pending:
        path = pending.pop()
        yield path
        if path.is_dir() and not path.is_symlink():
            pending.extend(sorted(path.iterdir(), reverse=True))
