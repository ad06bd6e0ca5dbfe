"""Store every regular file of a directory as an object, on uvloop; prints how many were new.

python examples/bulk_uvloop.py /usr/include /path/to/repository
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from composefs_async import Repository, StoreOutcome


def contents(directory: Path) -> Iterator[bytes]:
    # Taken lazily, so that memory holds a few batches and not the directory.
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.read_bytes()


async def main(directory: str, repository: str) -> None:
    repo = await Repository.init_async(repository, insecure=True, ensure=True)
    async with repo:
        start = time.perf_counter()
        stored = await repo.ensure_objects_async(contents(Path(directory)))
        await repo.sync_async()
        seconds = time.perf_counter() - start
    new = sum(found.outcome is StoreOutcome.STORED for found in stored)
    print(f"{len(stored)} files, {new} new objects, {seconds:.3f} s")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    anyio.run(main, *sys.argv[1:], backend_options={"use_uvloop": True})
