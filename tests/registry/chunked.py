"""Layers in the form zstd:chunked, and such as lie about themselves."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from composefs_async._zstd import zstd

PREFIX = "io.github.containers.zstd-chunked."
Change = Callable[[Any], object]


@dataclass
class ChunkedLayer:
    """A layer; made by `make_chunked`."""

    tar: bytes
    blob: bytes
    annotations: dict[str, str]
    toc: dict[str, Any] = field(repr=False)

    @property
    def diff_id(self) -> str:
        return digest_of(self.tar)


def content(seed: int, size: int) -> bytes:
    """Of a file; zstd cannot make it smaller."""
    return random.Random(seed).randbytes(size)


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _skippable(content: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


def _line(document: dict[str, Any], position: int) -> bytes:
    return json.dumps({**document, "position": position}).encode() + b"\n"


def make_chunked(
    tar: bytes,
    *,
    toc: Change | None = None,
    lines: Change | None = None,
    annotations: Change | None = None,
    raw_toc: bytes | None = None,
) -> ChunkedLayer:
    """Pack a tar.

    Args:
        toc: changes the table of contents before it is written.
        lines: changes the lines of the tar-split.
        annotations: changes those, after all.
        raw_toc: stands in the place of the table of contents.
    """
    out, at = bytearray(), 0
    entries: list[dict[str, Any]] = []
    split: list[dict[str, Any]] = []

    def literal(end: int) -> None:
        nonlocal at
        if end > at:
            out.extend(zstd.compress(tar[at:end]))
            split.append({"type": 2, "payload": base64.b64encode(tar[at:end]).decode()})
            at = end

    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            entry: dict[str, Any] = {"type": "reg" if member.isreg() else "dir", "name": member.name}
            if member.isreg() and member.size:
                literal(member.offset_data)
                content = tar[at : at + member.size]
                start = len(out)
                out += zstd.compress(content[: len(content) // 2]) + zstd.compress(content[len(content) // 2 :])
                entry |= {"size": member.size, "digest": digest_of(content), "offset": start, "endOffset": len(out)}
                split.append({"type": 1, "name": member.name, "size": member.size, "payload": "AAAAAAAAAAA="})
                at += member.size
            entries.append(entry)
    literal(len(tar))
    if lines is not None:
        lines(split)
    plain_split = b"".join(_line(each, position) for position, each in enumerate(split))
    packed_split = zstd.compress(plain_split)
    table: dict[str, Any] = {"version": 1, "entries": entries, "tarSplitDigest": digest_of(packed_split)}
    if toc is not None:
        toc(table)
    plain_toc = json.dumps(table).encode() if raw_toc is None else raw_toc
    packed_toc = zstd.compress(plain_toc)
    toc_at = len(out) + 8
    out += _skippable(packed_toc)
    split_at = len(out) + 8
    out += _skippable(packed_split) + _skippable(bytes(64))
    found = {
        f"{PREFIX}manifest-checksum": digest_of(packed_toc),
        f"{PREFIX}manifest-position": f"{toc_at}:{len(packed_toc)}:{len(plain_toc)}:1",
        f"{PREFIX}tarsplit-position": f"{split_at}:{len(packed_split)}:{len(plain_split)}",
    }
    if annotations is not None:
        annotations(found)
    return ChunkedLayer(tar, bytes(out), found, table)


@dataclass
class ChunkedImage:
    """A manifest of such layers."""

    layers: list[ChunkedLayer]

    @property
    def config(self) -> bytes:
        diff_ids = [layer.diff_id for layer in self.layers]
        return json.dumps(
            {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        ).encode()

    @property
    def manifest(self) -> bytes:
        media_type = "application/vnd.oci.image."
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{media_type}manifest.v1+json",
                "config": {
                    "mediaType": f"{media_type}config.v1+json",
                    "digest": digest_of(self.config),
                    "size": len(self.config),
                },
                "layers": [
                    {
                        "mediaType": f"{media_type}layer.v1.tar+zstd",
                        "digest": digest_of(layer.blob),
                        "size": len(layer.blob),
                        "annotations": layer.annotations,
                    }
                    for layer in self.layers
                ],
            }
        ).encode()

    def put(self, registry: Any, tag: str, name: str = "a/b") -> None:
        for blob in [self.config, *(layer.blob for layer in self.layers)]:
            registry.put_blob(name, blob)
        registry.put_manifest(name, tag, self.manifest)
