"""Plain tars as an image: ``tarball:FILE[:FILE…]``, each a layer, lowest first, packed or not.

Owns the references and the documents that are made: of the config only the platform, the history and the time of the
newest file are known.  Each file is read once, so that ``-``, standard input, and pipes can be among them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from ..._aio.hops import opening_hop
from ...digest import sha256_content_digest
from ...errors import InvalidNameError, OciError
from ..building.config import documents, plain_descriptor, timestamp
from ..documents import image_layers, parse_config, parse_manifest
from ..importing.layers import ImportRun, LayerResult, store_layer
from ..importing.one_pass import ReadOnce, Received
from ..importing.unpack import ByteSource, Unpacker, byte_source
from ..limits import Limits
from ..platforms import Platform, host_platform
from .arriving import STANDARD_INPUT, PipeBytes, open_input
from .base import LocalBlob, ResolvedImage

__all__ = ["TarballSource", "check_reference", "open_reference"]


def _parse(reference: str) -> tuple[str, ...]:
    files = tuple(reference.partition(":")[2].split(":"))
    if not all(files):
        raise InvalidNameError(reference, "say which tars: tarball:FILE[:FILE…]; a name ends at the first colon")
    if files.count(STANDARD_INPUT) > 1:
        raise InvalidNameError(reference, "standard input can be read but once")
    return files


def check_reference(reference: str) -> None:
    """Check the spelling of ``tarball:FILE[:FILE…]``.

    Raises:
        InvalidNameError: *reference* is not spelled so.
    """
    _parse(reference)


@asynccontextmanager
async def open_reference(reference: str, limits: Limits) -> AsyncIterator[TarballSource]:
    """Open the tars that *reference* names; they are read when they are pulled.

    Raises:
        InvalidNameError: as `check_reference`.
        ImageNotFoundError: there is no such file.
        OciError: one is a directory.
    """
    files = _parse(reference)
    with ExitStack() as stack:
        tars = [await opening_hop(lambda _: None, _open, reference, file, stack) for file in files]
        yield TarballSource(reference, tars)


@dataclass(frozen=True, slots=True)
class _Tar:
    path: str
    fd: int
    size: int
    """0 of what is no regular file."""
    mtime: int
    """In seconds; 0 of what is no regular file."""


def _open(reference: str, path: str, stack: ExitStack) -> _Tar:
    fd = open_input(path, reference)
    stack.callback(os.close, fd)
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise OciError(reference, f"{path} is a directory, not a tar: 'oci build --directory' makes a layer of one")
    if not stat.S_ISREG(status.st_mode) or os.lseek(fd, 0, os.SEEK_CUR):  # somebody has begun to read it
        return _Tar(path, fd, 0, 0)
    return _Tar(path, fd, status.st_size, int(status.st_mtime))


class TarballSource(ReadOnce):
    """The layers of one image, of which there is nothing else; read once, by `pull`."""

    def __init__(self, reference: str, tars: list[_Tar]) -> None:
        super().__init__(reference)
        self._tars = tars

    async def receive(self, run: ImportRun, platform: Platform | None) -> Received:
        """Store the layers and make the documents; see `OnePassSource`.

        Raises:
            TarError, CompressionError: a file is no tar.
        """
        layers: list[tuple[LayerResult, int, str]] = []
        for tar in self._tars:
            unpacker = Unpacker(run.state, byte_source(_bytes(tar)), None, limits=run.limits)
            result = await store_layer(run, None, unpacker, tar.size, label=tar.path)
            await run.lease(result.diff_id, result.stream_id)
            layers.append((result, unpacker.bytes_unpacked, tar.path))
        image = self._image(layers, platform or host_platform())
        return Received(image, {result.diff_id: result for result, _, _ in layers})

    def _image(self, layers: list[tuple[LayerResult, int, str]], platform: Platform) -> ResolvedImage:
        described = [
            (plain_descriptor(result.diff_id, size), result.diff_id, f"tarball {os.path.basename(path)}")
            for result, size, path in layers
        ]
        created = timestamp(max(tar.mtime for tar in self._tars))
        manifest_raw, config_raw = documents({}, platform, created, described, {})
        manifest = parse_manifest(manifest_raw, sha256_content_digest(manifest_raw))
        config = parse_config(config_raw, manifest.config.digest)
        found = image_layers(manifest, config)
        return ResolvedImage(self.reference, manifest, config, config_raw, found, manifest_made=True)


def _bytes(tar: _Tar) -> ByteSource:
    return LocalBlob(tar.fd, tar.size, tar.path) if tar.size else PipeBytes(tar.fd, tar.path)
