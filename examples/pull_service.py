"""A service that pulls many images from registries at once, with bounded memory, and tells how far each has come.

python examples/pull_service.py /path/to/repository docker://HOST/NAME:TAG... [--insecure] [--loop asyncio|uvloop|trio]

A few images are pulled at a time; each keeps no more in memory than the buffers of a few chunks, whatever its size.
Layers that several images share are fetched once.  One that fails does not stop the others, and what has arrived of it
is used by the next run.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import anyio

from composefs_async import Repository
from composefs_async.errors import ComposefsError
from composefs_async.oci import ProgressStream, pull
from composefs_async.progress import BytesFetched, ImportDone, Retrying
from composefs_async.registry import Access, Transfer

AT_ONCE = 3


async def show(reference: str, events: ProgressStream) -> None:
    received: dict[str, int] = {}
    async for event in events:
        if isinstance(event, BytesFetched):
            received[event.digest] = event.received
            print(f"{reference}: {sum(received.values())} bytes", file=sys.stderr)
        elif isinstance(event, Retrying):
            print(f"{reference}: {event.reason}, again in {event.delay:.1f} s", file=sys.stderr)
        elif isinstance(event, ImportDone):
            print(f"{reference}: {event.digest}, {event.stats.objects_stored} new objects")


async def bring(repo: Repository, reference: str, access: Access, failed: list[str]) -> None:
    events = ProgressStream()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(show, reference, events)
        with events:  # ends `show`
            try:
                await pull(repo, reference, access=access, transfer=Transfer(connections=4), progress=events)
            except (ComposefsError, OSError) as error:
                failed.append(f"{reference}: {error}")


async def main(path: str, references: list[str], access: Access) -> int:
    free, failed = anyio.Semaphore(AT_ONCE), list[str]()

    async def one(reference: str) -> None:
        async with free:
            await bring(repo, reference, access, failed)

    repo = await Repository.init_async(path, insecure=True, ensure=True)
    async with repo, anyio.create_task_group() as tasks:
        for reference in references:
            tasks.start_soon(one, reference)
    for line in failed:
        print(line)
    return len(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository")
    parser.add_argument("references", nargs="+")
    parser.add_argument("--insecure", action="store_true", help="registries need no TLS")
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    given = parser.parse_args()
    work = partial(main, given.repository, given.references, Access(tls_verify=False if given.insecure else None))
    backend = "trio" if given.loop == "trio" else "asyncio"
    options = {"use_uvloop": given.loop == "uvloop"} if backend == "asyncio" else {}
    sys.exit(anyio.run(work, backend=backend, backend_options=options))
