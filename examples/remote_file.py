"""Prints one file of an image in a registry without pulling the image, if its layers are zstd:chunked.

python examples/remote_file.py docker://HOST/NAME:TAG usr/lib/os-release > os-release

Such layers (podman push --compression-format zstd:chunked) end in a table of contents. Fetched are the manifest, the
tables, from the highest layer down to the one that has the file, and the bytes of that file. Everything is compared
with a digest that the manifest leads to, and nothing unpacks to more than it says.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from functools import partial
from typing import Any

import anyio

from composefs_async.errors import ComposefsError, DigestMismatchError
from composefs_async.registry import Access, RegistryClient

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PREFIX = "io.github.containers.zstd-chunked."
TABLE_LIMIT = 64 << 20


def check(what: str, content: bytes, digest: str) -> None:
    found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if found != digest:
        raise DigestMismatchError(what, digest, found)


def unpack(packed: bytes, size: int) -> bytes:
    """Unpack the first *size* bytes of some zstd frames."""
    with zstd.ZstdFile(io.BytesIO(packed)) as file:
        return file.read(size)


async def table_of(client: RegistryClient, reference: str, layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a layer."""
    annotations = layer.get("annotations", {})
    if f"{PREFIX}manifest-position" not in annotations:
        sys.exit(f"layer {layer['digest']} is not zstd:chunked")
    offset, size, unpacked, _ = map(int, annotations[f"{PREFIX}manifest-position"].split(":"))
    if max(size, unpacked) > TABLE_LIMIT:
        sys.exit(f"layer {layer['digest']} has a table of contents of {max(size, unpacked)} bytes")
    packed = await client.blob_range(reference, layer["digest"], layer["size"], offset, offset + size)
    check(f"table of contents of {layer['digest']}", packed, annotations[f"{PREFIX}manifest-checksum"])
    table = unpack(packed, unpacked)
    return [entry for entry in json.loads(table)["entries"] if entry["type"] != "chunk"]


async def main(reference: str, path: str, access: Access) -> None:
    async with RegistryClient(access) as client:
        document = await client.manifest(reference)
        if document.is_index:
            sys.exit(f"{reference} is an index; name one of its manifests: {document.raw.decode()}")
        for layer in reversed(json.loads(document.raw)["layers"]):
            entries = {entry["name"].strip("/"): entry for entry in await table_of(client, reference, layer)}
            above, _, name = path.rpartition("/")
            if f"{above}/.wh.{name}".strip("/") in entries:
                sys.exit(f"{path} is removed by layer {layer['digest']}")
            entry = entries.get(path)
            if entry is not None and entry["type"] == "hardlink":
                entry = entries.get(entry["linkName"].strip("/"))
            if entry is None:
                continue
            if entry["type"] != "reg":
                sys.exit(f"{path} is of type {entry['type']}: {entry.get('linkName', 'it has no content')}")
            if entry.get("size"):
                start, end = entry["offset"], entry["endOffset"]
                packed = await client.blob_range(reference, layer["digest"], layer["size"], start, end)
                content = unpack(packed, entry["size"])
                check(path, content, entry["digest"])
                sys.stdout.buffer.write(content)
                print(f"{end - start} of {layer['size']} bytes of {layer['digest']}", file=sys.stderr)
            return
        sys.exit(f"{path} is in no layer of {reference}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference")
    parser.add_argument("path")
    parser.add_argument("--insecure", action="store_true", help="the registry needs no TLS")
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    given = parser.parse_args()
    access = Access(tls_verify=False if given.insecure else None)
    backend = "trio" if given.loop == "trio" else "asyncio"
    options = {"use_uvloop": given.loop == "uvloop"} if backend == "asyncio" else {}
    work = partial(main, given.reference, given.path.strip("/"), access)
    try:
        anyio.run(work, backend=backend, backend_options=options)
    except (ComposefsError, OSError) as error:
        sys.exit(f"{given.reference}: {error}")
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"{given.reference}: a document of it is malformed: {error}")
