"""Import a layer from an aiofiles handle: anything with an async ``read`` is a source.

python examples/import_aiofiles.py layer.tar.gz sha256:DIFF_ID /path/to/repository
"""

from __future__ import annotations

import asyncio
import sys

import aiofiles

from composefs_async import Repository
from composefs_async.oci import import_layer


async def main(tar: str, diff_id: str, repository: str) -> None:
    repo = await Repository.init_async(repository, insecure=True, ensure=True)
    async with repo, aiofiles.open(tar, "rb") as source:
        layer = await import_layer(repo, diff_id, source)
    print(
        f"{layer.stats.objects_stored} objects stored, {layer.stats.objects_present} were there: {layer.stream_id.text}"
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
