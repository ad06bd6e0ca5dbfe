"""Pull an image on trio and follow its progress in another task.

python examples/pull_trio.py oci:/path/to/image /path/to/repository
"""

from __future__ import annotations

import sys

import trio

from composefs_async import Repository
from composefs_async.oci import ProgressStream, pull
from composefs_async.progress import LayerDone


async def main(reference: str, repository: str) -> None:
    repo = await Repository.init_async(repository, insecure=True, ensure=True)
    progress = ProgressStream()

    async def work() -> None:
        with progress:
            result = await pull(repo, reference, tag="example", progress=progress)
        print(f"tagged {result.tag}: {result.manifest_digest}")

    async with repo, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        async for event in progress:
            if isinstance(event, LayerDone):
                print(f"{event.diff_id[:19]}: {event.stats.objects_stored} objects, {event.stats.bytes_read} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    trio.run(main, *sys.argv[1:])
