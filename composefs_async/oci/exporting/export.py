"""``oci copy`` of images of the repository: to image directories, archives and daemons.

Owns the destinations' spelling, and the order: plan and pack the layers, then write. Layers are packed side by side.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from anyio import CapacityLimiter, create_task_group

from ..._aio.bulk import iterate
from ..._aio.groups import single_error
from ..._aio.hops import hop
from ..._aio.operations import async_operation
from ..._sys import files
from ...errors import InvalidNameError, OciError, TransportError
from ...repository import Repository
from ..catalogue import OciImage, open_image
from ..documents import ImageLayer, image_layers
from ..jsondoc import DOCUMENT_LIMIT
from ..sources.daemon import socket_path
from ..sources.environment import variable
from ..sources.familiar import normalized_name
from ..sources.unix_http import request
from .archives import docker_archive, oci_archive
from .directories import write_directory, write_file, write_layout
from .images import OutImage, out_image
from .layers import Form, OutLayer, original_layer, packed_layer, parse_form, plain_layer, spool_file

__all__ = ["DESTINATIONS", "CopyResult", "check_destination", "export_images"]

DESTINATIONS = ("oci", "oci-archive", "docker-archive", "dir", "docker-daemon")
_STANDARD_OUTPUT = "-"


@dataclass(frozen=True, slots=True)
class CopyResult:
    """An image that is in place where it was to go."""

    name: str
    destination: str
    manifest_digest: str
    """Digest of the manifest there."""
    original_digest: str
    """Digest of the manifest in the repository; another one if layers left in another form."""
    blobs_written: int
    blobs_present: int
    """Blobs that the destination had."""


@dataclass(frozen=True, slots=True)
class _Destination:
    text: str
    transport: str
    path: str
    name: str | None


def check_destination(text: str) -> str:
    """Return *text* if it is spelled as a destination.

    Raises:
        InvalidNameError: it is not.
    """
    _parse(text)
    return text


def _parse(text: str) -> _Destination:
    transport, colon, rest = text.partition(":")
    if not colon or transport not in DESTINATIONS:
        known = ", ".join(f"{each}:" for each in DESTINATIONS)
        raise InvalidNameError(text, f"not a place for images, which begins with one of {known}")
    if transport in ("dir", "docker-daemon"):
        path, name = (rest, None) if transport == "dir" else ("", rest)
    else:
        path, colon, found = rest.partition(":")
        name = found if colon else None
    if transport != "docker-daemon" and not path:
        raise InvalidNameError(text, f"the path is missing: {transport}:PATH")
    if name == "" or (transport == "docker-daemon" and not name):
        raise InvalidNameError(text, "the name is empty")
    if transport.startswith("docker") and name is not None and normalized_name(name) is None:
        raise InvalidNameError(text, f"{name!r} is no name that an image can have")
    if transport.startswith("oci") and name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+:@/-]*", name):
        raise InvalidNameError(text, f"{name!r} is no tag")
    return _Destination(text, transport, path, name)


@async_operation
async def export_images(
    repo: Repository, names: Sequence[str], destination: str, *, layers: str = "auto"
) -> list[CopyResult]:
    """Write images of the repository to an archive, a directory or a daemon.  Durable on return, where it is a file.

    Args:
        names: tags, or ``@DIGEST``; several only into an archive or an image directory.
        destination: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:NAME:TAG]``, ``dir:PATH`` or
            ``docker-daemon:NAME:TAG``.  FILE may be ``-``, standard output.  A file appears when it is whole.
        layers: their form: ``original`` as they were shipped, or not at all; ``plain``; ``gzip[:LEVEL]``;
            ``zstd[:LEVEL]``; ``auto`` as they were shipped if that can be had of all of them, and otherwise zstd.  A
            docker-archive has plain ones.  If another form makes another manifest, its annotations tell the old one.

    Raises:
        InvalidNameError: the destination is not spelled right.
        StreamNotFoundError: there is no such image.
        OciError: layers cannot be had in that form; the message lists them.
        TransportError: the daemon refuses.
    """
    place, (form, level) = _parse(destination), parse_form(layers)
    if len(names) > 1 and (place.name is not None or place.transport in ("dir", "docker-daemon")):
        raise InvalidNameError(destination, "several images cannot go there, or not by one name")
    with ExitStack() as stack:
        export = _Export(repo, place, form, level, stack)
        images = [await export.image(name) for name in names]
        counts = await export.write(images)
    return [
        CopyResult(name, destination, image.manifest.digest, image.original_digest, *counts)
        for name, image in zip(names, images, strict=True)
    ]


class _Export:
    def __init__(self, repo: Repository, place: _Destination, form: Form, level: int | None, stack: ExitStack) -> None:
        self._repo, self._place, self._form, self._level, self._stack = repo, place, form, level, stack
        self._packing = CapacityLimiter(os.cpu_count() or 1)

    # -- what leaves ---------------------------------------------------------------------------

    async def image(self, name: str) -> OutImage:
        image = await hop(open_image, self._repo, name)
        if image.manifest_id is None:
            raise OciError(name, "it has no manifest; 'oci upgrade' makes one")
        named = image_layers(image.manifest, image.config)
        out = await self._layers(image, {layer.descriptor.digest: layer for layer in named})
        layers = [out[layer.descriptor.digest] for layer in named]
        return await hop(out_image, None if name.startswith(("@", "sha256:")) else name, image, layers)

    async def _layers(self, image: OciImage, wanted: dict[str, ImageLayer]) -> dict[str, OutLayer]:
        docker = self._place.transport.startswith("docker")
        if docker and (image.config is None or self._form not in ("auto", "plain")):
            what = "an artifact" if image.config is None else f"layers of the form {self._form}"
            raise OciError(self._place.text, f"such a place takes no {what}")
        form = "plain" if docker else self._form
        if form in ("auto", "original") or image.config is None:
            originals = {digest: await hop(original_layer, self._repo, image, each) for digest, each in wanted.items()}
            found = {digest: layer for digest, layer in originals.items() if layer is not None}
            if len(found) == len(wanted):
                return found
            if form == "original" or image.config is None:
                missing = ", ".join(digest for digest in wanted if digest not in found)
                raise OciError(f"image {image.manifest.digest}", f"not kept as they were shipped: {missing}")
            form = "zstd"
        if form == "plain":
            return {digest: await hop(plain_layer, self._repo, image, layer) for digest, layer in wanted.items()}
        return await self._packed(wanted, form)

    async def _packed(self, wanted: dict[str, ImageLayer], form: str) -> dict[str, OutLayer]:
        packed: dict[str, OutLayer] = {}

        async def pack(layer: ImageLayer) -> None:
            async with self._packing:
                spool = self._stack.enter_context(await hop(_spool, self._place))
                made = await hop(packed_layer, self._repo, layer, form, self._level, spool)
                packed[layer.descriptor.digest] = made

        with single_error():
            async with create_task_group() as tasks:
                for layer in wanted.values():
                    tasks.start_soon(pack, layer)
        return packed

    # -- where to ------------------------------------------------------------------------------

    async def write(self, images: Sequence[OutImage]) -> tuple[int, int]:
        place, path = self._place, Path(self._place.path)
        if place.transport == "oci":
            counts = [await hop(write_layout, path, image, self._tag(image)) for image in images]
            return sum(count[0] for count in counts), sum(count[1] for count in counts)
        if place.transport == "dir":
            return await hop(write_directory, path, images[0])
        blobs = len({layer.descriptor.digest for image in images for layer in image.layers}) + len(images)
        if place.transport == "docker-daemon":
            await self._load(images)
        elif place.path == _STANDARD_OUTPUT:
            await hop(_to_standard_output, self._pieces(images))
        else:
            await hop(_to_file, path, self._pieces(images))
        return blobs, 0

    def _tag(self, image: OutImage) -> str | None:
        return self._place.name if self._place.name is not None else image.name

    def _pieces(self, images: Sequence[OutImage]) -> Iterator[bytes]:
        mtime = _epoch()
        if self._place.transport == "oci-archive":
            return oci_archive([(image, self._tag(image)) for image in images], mtime)
        by_config: dict[str, tuple[OutImage, list[str]]] = {}
        for image in images:
            names = by_config.setdefault(image.config.digest, (image, []))[1]
            tag = self._tag(image)
            if tag is not None and (self._place.name is not None or normalized_name(tag) is not None):
                names.append(tag)
        return docker_archive(list(by_config.values()), mtime)

    async def _load(self, images: Sequence[OutImage]) -> None:
        body = iterate(partial(self._pieces, images))
        async with request(socket_path(), "POST", "/images/load", body, "application/x-tar") as answer:
            said = await answer.read(DOCUMENT_LIMIT)
            if answer.status != 200 or b'"error"' in said:
                text = said.decode(errors="replace").strip()[:200]
                raise TransportError(f"{self._place.text}: the daemon answered {answer.status} {text}")


def _spool(place: _Destination) -> IO[bytes]:
    """A file on the file system of the destination, if that is a file."""
    if place.path in ("", _STANDARD_OUTPUT):
        return spool_file(None)
    path = Path(place.path)
    if place.transport in ("oci", "dir"):
        path.mkdir(parents=True, exist_ok=True)
    return spool_file(str(path if path.is_dir() else path.parent))


def _to_file(path: Path, pieces: Iterator[bytes]) -> None:
    if path.exists() and not path.is_file():  # /dev/null, or a pipe of a name
        with path.open("wb", buffering=0) as file:
            for piece in pieces:
                files.write_all(file.fileno(), piece)
    else:
        write_file(path.absolute(), pieces)


def _to_standard_output(pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        files.write_all(1, piece)


def _epoch() -> int:
    text = variable("SOURCE_DATE_EPOCH")
    if text is None:
        return 0
    if not text.isdecimal():
        raise OciError("SOURCE_DATE_EPOCH", f"{text!r} is no number of seconds")
    return int(text)
