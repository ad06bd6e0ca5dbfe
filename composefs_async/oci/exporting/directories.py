"""Images into directories: OCI layouts, and those of containers/image; blocks.

Each file appears by rename, and what makes an image visible comes last, so that whatever stops it leaves what was
there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..._sys import files, locks
from ...errors import OciError
from .archives import compact, index_entry
from .images import OutImage

__all__ = ["write_directory", "write_file", "write_layout"]

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_VERSION = b"Directory Transport Version: 1.1\n"
_INDEX_LIMIT = 4 << 20


def write_layout(directory: Path, image: OutImage, tag: str | None) -> tuple[int, int]:
    """Add an image to an OCI image directory, in the place of another one of that tag.  Durable.

    Returns:
        How many blobs were written, and how many were there.

    Raises:
        OciError: the directory is something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with files.opened(str(directory), os.O_RDONLY | os.O_DIRECTORY) as fd:
        locks.lock(fd, exclusive=True)
        if not (directory / "oci-layout").exists() and any(directory.iterdir()):
            raise OciError(str(directory), "it is neither empty nor an OCI image directory")
        written = present = 0
        for digest, pieces in _blobs(image):
            path = directory / "blobs" / digest.replace(":", "/")
            if path.exists():
                present += 1
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, pieces)
                written += 1
        index = directory / "index.json"
        document = _index(index)
        entries = [entry for entry in document["manifests"] if tag is None or _tag(entry) != tag]
        new = index_entry(image.manifest, tag)
        document["manifests"] = [*(entry for entry in entries if entry != new), new]
        if not (directory / "oci-layout").exists():
            write_file(directory / "oci-layout", [_LAYOUT])
        files.syncfs(fd)
        write_file(index, [compact(document)])
        os.fsync(fd)
    return written, present


def _tag(entry: Any) -> object:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return annotations.get("org.opencontainers.image.ref.name") if isinstance(annotations, dict) else None


def _index(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {"schemaVersion": 2, "manifests": []}
    try:
        document = json.loads(raw) if len(raw) <= _INDEX_LIMIT else None
    except ValueError:
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("manifests", []), list):
        raise OciError(str(path), "it is no index of images")
    return {**document, "manifests": document.get("manifests", [])}


def _blobs(image: OutImage) -> Iterator[tuple[str, Iterable[bytes]]]:
    seen: set[str] = set()
    for layer in image.layers:
        if layer.descriptor.digest not in seen:
            seen.add(layer.descriptor.digest)
            yield layer.descriptor.digest, layer.pieces()
    yield image.config.digest, [image.config_raw]
    yield image.manifest.digest, [image.manifest_raw]


def write_directory(directory: Path, image: OutImage) -> tuple[int, int]:
    """Write an image into a directory of containers/image, which is made.  Durable.

    Raises:
        OciError: the directory is something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()) and not (directory / "version").exists():
        raise OciError(str(directory), "it is neither empty nor a directory of containers/image")
    write_file(directory / "version", [_VERSION])
    with suppress(FileNotFoundError):
        (directory / "manifest.json").unlink()
    written = 0
    for digest, pieces in _blobs(image):
        name = "manifest.json" if digest == image.manifest.digest else digest.partition(":")[2]
        write_file(directory / name, pieces)
        written += 1
    with files.opened(str(directory), os.O_RDONLY | os.O_DIRECTORY) as fd:
        files.syncfs(fd)
    return written, 0


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Put a file in the place of *path*, whole or not at all."""
    with files.opened(str(path.parent), os.O_RDONLY | os.O_DIRECTORY) as directory:
        tmpfile = files.Tmpfile.create(".", 0o644, dir_fd=directory)
        try:
            for piece in pieces:
                files.write_all(tmpfile.fd, piece)
            os.fsync(tmpfile.fd)
            tmpfile.replace(path.name, dir_fd=directory)
        finally:
            tmpfile.discard()
