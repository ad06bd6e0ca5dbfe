"""How long an import keeps the event loop from others, and how much memory it takes.

A task that wants to run every millisecond measures by how much it is late while an image is imported beside it.
``--large GIB`` imports one layer with a file of that size instead, to see that memory stays flat.

    python benchmarks/stall.py A --dir /dev/shm
    python benchmarks/stall.py --large 4 --dir /dev/shm
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
from inputs import DEFAULT_CACHE, make_input
from objects import LOOPS
from provenance import print_provenance, provenance

from composefs_async import Repository
from composefs_async.oci import import_layer, pull

PERIOD = 0.001  # seconds
MIB = 1 << 20


async def lateness(work: Callable[[], Awaitable[object]]) -> list[float]:
    """By how many milliseconds each wake-up was late while *work* ran, sorted."""
    late: list[float] = []

    async def watch() -> None:
        while True:
            due = time.perf_counter() + PERIOD
            await anyio.sleep(PERIOD)
            late.append((time.perf_counter() - due) * 1000)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await work()
        tasks.cancel_scope.cancel()
    return sorted(late)


def large_layer(size: int) -> Iterator[bytes]:
    member = tarfile.TarInfo("large")
    member.size = size
    yield member.tobuf(tarfile.GNU_FORMAT)
    block = os.urandom(MIB)
    for number in range(size // MIB):
        yield number.to_bytes(8, "little") + block[8:]
    yield bytes(1024)


async def measure(repository: Path, reference: str | None, large: int) -> dict[str, float]:
    hasher = hashlib.sha256()
    if large:
        for piece in large_layer(large):
            hasher.update(piece)

    async def source() -> AsyncIterator[bytes]:
        for piece in large_layer(large):
            yield piece

    repo = await Repository.init_async(repository, insecure=True)
    async with repo:
        start = time.perf_counter()
        if reference is None:
            late = await lateness(lambda: import_layer(repo, f"sha256:{hasher.hexdigest()}", source()))
        else:
            late = await lateness(lambda: pull(repo, reference, tag="bench"))
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "p50 ms": late[len(late) // 2],
        "p99 ms": late[len(late) * 99 // 100],
        "max ms": late[-1],
        "RSS MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="A", help="of the input, see inputs.py")
    parser.add_argument("--large", type=int, default=0, metavar="GIB")
    parser.add_argument("--loops", nargs="*", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    reference = None if options.large else make_input(options.name, options.cache, options.scale).reference
    origin = provenance()
    print_provenance(origin)
    results = {}
    for loop in options.loops:
        place = Path(tempfile.mkdtemp(prefix="composefs-bench-", dir=options.dir))
        results[loop] = anyio.run(measure, place / "repo", reference, options.large << 30, **LOOPS[loop])
        shutil.rmtree(place)
        print(f"{loop:10}" + "".join(f"{name:>10} {value:8.2f}" for name, value in results[loop].items()))
    if options.json:
        options.json.write_text(json.dumps({"provenance": origin, "loops": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
