"""Repositories as composefs-rs wrote them in January and February 2026, built by hand from its format.

Nothing here stands on the code that is tested, except for the body of a splitstream, the digests that name objects,
and the writer of image directories.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composefs_async import fsverity
from composefs_async._zstd import zstd
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.platforms import Platform
from composefs_async.splitstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, SplitstreamWriter

VECTORS = Path(__file__).parent.parent / "vectors"
PLATFORM = Platform("linux", "amd64")
INLINE_MAX = 64


def january_header(header: bytes) -> bytes:
    """The same 32 bytes in the order that the compiler had sorted the fields to until 2026-03."""
    magic, version, flags, algorithm, block, start, end = struct.unpack("<11sBHBBQQ", header)
    return struct.pack("<QQH11sBBB", start, end, flags, magic, version, algorithm, block)


@dataclass
class Image:
    """An image directory of two layers, and what an old repository keeps of it."""

    directory: Path
    manifest: bytes = b""
    config: bytes = b""
    tars: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """By diff_id."""

    @classmethod
    def make(cls, directory: Path, seed: bytes = b"one") -> Image:
        writer = OciLayoutWriter(directory)
        tars = [_tar(seed + b" lower"), _tar(seed + b" upper")]
        manifest = writer.add_image([writer.add_layer(tar, "gzip") for tar in tars], platform=PLATFORM)
        image = cls(directory, tars={_sha256(tar): tar for tar in tars})
        image.manifest = image._blob(manifest.digest)
        image.config = image._blob(json.loads(image.manifest)["config"]["digest"])
        return image

    def _blob(self, digest: str) -> bytes:
        return (self.directory / "blobs" / digest.replace(":", "/")).read_bytes()

    @property
    def reference(self) -> str:
        return f"oci:{self.directory}:latest"

    @property
    def manifest_digest(self) -> str:
        return _sha256(self.manifest)

    @property
    def config_digest(self) -> str:
        return _sha256(self.config)


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _tar(seed: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("usr", "usr/lib"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        for size in (10, INLINE_MAX, INLINE_MAX + 1, 5000):
            member = tarfile.TarInfo(f"usr/lib/{size}-{seed.decode().replace(' ', '-')}")
            member.size = size
            archive.addfile(member, io.BytesIO((seed * size)[:size]))
    return out.getvalue()


class Builder:
    """Writes what a repository without meta.json has: objects, streams and their names."""

    def __init__(self, path: Path, algorithm: Algorithm, *, january: bool) -> None:
        self.path, self.algorithm, self.january = path, algorithm, january
        for name in ("objects", "streams/refs"):
            (path / name).mkdir(parents=True, exist_ok=True)

    def object(self, content: bytes) -> ObjectId:
        found = fsverity.digest(content, self.algorithm)
        file = self.path / "objects" / found.path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        return found

    def writer(self, content_type: int, refs: dict[str, ObjectId] | None = None) -> SplitstreamWriter:
        writer = SplitstreamWriter(self.algorithm, content_type)
        for key, target in (refs or {}).items():
            writer.add_named_stream_ref(key, target)
        return writer

    def external(self, writer: SplitstreamWriter, content: bytes) -> None:
        writer.write_reference(self.object(content))
        writer.add_external_size(len(content))

    def stream(self, name: str, writer: SplitstreamWriter) -> ObjectId:
        content = writer.done()
        if self.january:
            content = january_header(content[:32]) + content[32:]
        found = self.object(content)
        self.link(f"streams/{name}", f"../objects/{found.path}")
        return found

    def link(self, name: str, target: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, self.path / name)

    def layer(self, diff_id: str, tar: bytes) -> ObjectId:
        writer, position = self.writer(OCI_LAYER), 0
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member in archive:
                if member.isfile() and member.size > INLINE_MAX:
                    writer.write_inline(tar[position : member.offset_data])
                    position = member.offset_data + member.size
                    self.external(writer, tar[member.offset_data : position])
        writer.write_inline(tar[position:])
        return self.stream(f"oci-layer-{diff_id}", writer)

    def config(self, image: Image, *, inline: bool, more: dict[str, ObjectId] | None = None) -> ObjectId:
        layers = {diff_id: self.layer(diff_id, tar) for diff_id, tar in image.tars.items()}
        writer = self.writer(OCI_CONFIG, layers | (more or {}))
        if inline:
            writer.write_inline(image.config)
        else:
            self.external(writer, image.config)
        return self.stream(f"oci-config-{image.config_digest}", writer)

    def manifest(self, image: Image, tag: str, **options: Any) -> ObjectId:
        refs = {f"config:{image.config_digest}": self.config(image, inline=False, **options)}
        refs |= {name: self.layer_id(name) for name in image.tars}
        writer = self.writer(OCI_MANIFEST, refs)
        self.external(writer, image.manifest)
        name = f"oci-manifest-{image.manifest_digest}"
        found = self.stream(name, writer)
        self.link(f"streams/refs/oci/{tag}", f"../../{name}")
        return found

    def layer_id(self, diff_id: str) -> ObjectId:
        return ObjectId.from_path(os.readlink(self.path / f"streams/oci-layer-{diff_id}"))

    def image(self, content: bytes) -> ObjectId:
        found = self.object(content)
        self.link(f"images/{found}", f"../objects/{found.path}")
        return found


def january(path: Path, algorithm: Algorithm, image: Image, tag: str = "app", *, dangling: bool = True) -> Builder:
    """G1: configs inline, no manifest, and a reference to the bare digest of the config, which dangles.

    For one day it led to the stream of the config, as it should.
    """
    builder = Builder(path, algorithm, january=True)
    builder.config(image, inline=True)
    up = "../" * (1 + tag.count("/"))
    builder.link(f"streams/refs/{tag}", f"{up}{'' if dangling else 'oci-config-'}{image.config_digest}")
    return builder


def february(path: Path, algorithm: Algorithm, image: Image, tag: str = "app", **options: Any) -> Builder:
    """G2: external configs, manifests, tags below ``oci/``."""
    builder = Builder(path, algorithm, january=True)
    builder.manifest(image, tag, **options)
    return builder


def before_january(path: Path, algorithm: Algorithm) -> Builder:
    """G0: a stream is one zstd frame without a header, named by the sha256 of its content."""
    builder = Builder(path, algorithm, january=True)
    found = builder.object(zstd.compress(struct.pack("<QQ", 0, 5) + b"hello"))
    builder.link(f"streams/{hashlib.sha256(b'hello').hexdigest()}", f"../objects/{found.path}")
    return builder


def golden(flavour: str, path: Path) -> Path:
    """A repository that cfsctl made, without its meta.json."""
    content = zstd.decompress((VECTORS / "repository" / f"{flavour}.tar.zst").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(path, filter="fully_trusted")
    (meta,) = path.rglob("meta.json")
    meta.unlink()
    return meta.parent


def entries(repository: Path) -> dict[str, str]:
    """Size and sha256 of each file, target of each link, but for meta.json."""
    found = {}
    for path in sorted(repository.rglob("*")):
        name = str(path.relative_to(repository))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file() and name != "meta.json":
            content = path.read_bytes()
            found[name] = f"{len(content)} sha256:{hashlib.sha256(content).hexdigest()}"
    return found
