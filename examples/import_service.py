"""A service that brings an image layer by layer over HTTP, 20 at once, and can be stopped and started at any time.

python examples/import_service.py http://HOST:PORT/DIR DIGEST /path/to/repository TAG [asyncio|uvloop|trio [MOUNTPOINT]]

DIR is an OCI image directory behind any web server; DIGEST is of the manifest.  What has been imported when it is
stopped is kept by the lease, so that the next start goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from composefs_async import Repository
from composefs_async.oci import add_image, import_layer
from composefs_async.progress import BytesRead, LayerDone, ProgressEvent

AT_ONCE = 20


@asynccontextmanager
async def get(url: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body of an answer, as it comes; any asynchronous HTTP client does, this one is small."""
    parts = urlsplit(url)
    async with await anyio.connect_tcp(parts.hostname or "", parts.port or 80) as connection:
        await connection.send(f"GET {parts.path} HTTP/1.0\r\nHost: {parts.hostname}\r\n\r\n".encode())
        stream = BufferedByteReceiveStream(connection)
        status = (await stream.receive_until(b"\r\n\r\n", 65536)).split()[1]
        if status != b"200":
            raise RuntimeError(f"{url}: {status.decode()}")
        yield aiter(stream)


async def document(url: str) -> bytes:
    async with get(url) as body:
        return b"".join([piece async for piece in body])


def show(event: ProgressEvent) -> None:
    if isinstance(event, BytesRead):
        print(f"{event.diff_id[:19]}: {event.fetched} of {event.total or '?'} bytes", file=sys.stderr)
    elif isinstance(event, LayerDone):
        print(f"{event.diff_id[:19]}: {event.stats.objects_stored} objects")


async def bring(place: str, digest: str, repo: Repository, tag: str) -> str:
    """Import the image and return the id of its EROFS image."""

    def blob(named: str) -> str:
        return f"{place}/blobs/{named.replace(':', '/')}"

    manifest = await document(blob(digest))
    parts: dict[str, Any] = json.loads(manifest)
    config = await document(blob(parts["config"]["digest"]))
    diff_ids: list[str] = json.loads(config)["rootfs"]["diff_ids"]
    free = anyio.CapacityLimiter(AT_ONCE)

    async def layer(diff_id: str, url: str) -> None:
        async with free, get(url) as body:
            await import_layer(repo, diff_id, body, progress=show)

    async with repo.lease(digest):
        async with anyio.create_task_group() as tasks:
            for diff_id, part in zip(diff_ids, parts["layers"], strict=True):
                tasks.start_soon(layer, diff_id, blob(part["digest"]))
        image = await add_image(repo, manifest, config, tag=tag)
    print(f"tagged {image.tag}: {image.manifest_digest}")
    return str(image.image_id)


async def main(place: str, digest: str, repository: str, tag: str, mountpoint: str) -> None:
    repo = await Repository.init_async(repository, insecure=True, ensure=True)
    async with repo:
        image_id = await bring(place, digest, repo, tag)
        if mountpoint:
            await repo.mount_at_async(image_id, mountpoint)


if __name__ == "__main__":
    if not 5 <= len(sys.argv) <= 7:
        sys.exit(__doc__)
    loop, mountpoint, *_ = [*sys.argv[5:], *["asyncio", ""][len(sys.argv[5:]) :]]
    options = {"use_uvloop": loop == "uvloop"} if loop != "trio" else {}
    backend = "trio" if loop == "trio" else "asyncio"
    anyio.run(main, *sys.argv[1:5], mountpoint, backend=backend, backend_options=options)
