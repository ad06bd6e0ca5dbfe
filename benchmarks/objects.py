"""Small objects: 4 KiB × 20,000 distinct ones, stored one by one, gathered and in bulk, on each event loop.

*Gathered* are 1,000 calls of `ensure_object_async` at once, each a task: of the loop's own (`asyncio.gather`, a nursery
of trio) or of an AnyIO task group, whose tasks cost more than storing an object does.  Each way starts with an empty
repository below ``--dir``; the best of ``--rounds`` counts, in microseconds an object.
Run it with COMPOSEFS_ASYNC_NATIVE=off to see the same without the native code.

    python benchmarks/objects.py --dir /dev/shm
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import trio
from provenance import print_provenance, provenance

from composefs_async import Repository
from composefs_async._native import BACKEND

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
GATHERED = 1000
"""Calls of `ensure_object_async` that are under way at once."""


def one_by_one(repo: Repository, contents: list[bytes]) -> None:
    for data in contents:
        repo.ensure_object(data)


def bulk(repo: Repository, contents: list[bytes]) -> None:
    repo.ensure_objects(contents)


async def bulk_async(repo: Repository, contents: list[bytes]) -> None:
    await repo.ensure_objects_async(contents)


async def gathered_asyncio(repo: Repository, contents: list[bytes]) -> None:
    for at in range(0, len(contents), GATHERED):
        await asyncio.gather(*map(repo.ensure_object_async, contents[at : at + GATHERED]))


async def gathered_trio(repo: Repository, contents: list[bytes]) -> None:
    for at in range(0, len(contents), GATHERED):
        async with trio.open_nursery() as nursery:
            for data in contents[at : at + GATHERED]:
                nursery.start_soon(repo.ensure_object_async, data)


async def gathered_anyio(repo: Repository, contents: list[bytes]) -> None:
    for at in range(0, len(contents), GATHERED):
        async with anyio.create_task_group() as tasks:
            for data in contents[at : at + GATHERED]:
                tasks.start_soon(repo.ensure_object_async, data)


Sync = Callable[[Repository, list[bytes]], None]
Async = Callable[[Repository, list[bytes]], Awaitable[None]]


def timed_sync(way: Sync, repo: Repository, contents: list[bytes]) -> float:
    start = time.perf_counter()
    way(repo, contents)
    return time.perf_counter() - start


def timed_async(way: Async, loop: str) -> Callable[[Repository, list[bytes]], float]:
    def run(repo: Repository, contents: list[bytes]) -> float:
        async def main() -> float:
            start = time.perf_counter()
            await way(repo, contents)
            return time.perf_counter() - start

        return anyio.run(main, **LOOPS[loop])

    return run


def measure(contents: list[bytes], base: Path, rounds: int) -> dict[str, float]:
    """Microseconds an object, by way."""
    ways: dict[str, Callable[[Repository, list[bytes]], float]] = {
        "one by one": lambda repo, data: timed_sync(one_by_one, repo, data),
        "bulk": lambda repo, data: timed_sync(bulk, repo, data),
    }
    for loop in LOOPS:
        ways[f"bulk, {loop}"] = timed_async(bulk_async, loop)
        own = gathered_trio if loop == "trio" else gathered_asyncio
        ways[f"{GATHERED} gathered, {loop}"] = timed_async(own, loop)
        ways[f"{GATHERED} in AnyIO group, {loop}"] = timed_async(gathered_anyio, loop)
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            place = Path(tempfile.mkdtemp(prefix="composefs-bench-", dir=base))
            with Repository.init(place / "repo", insecure=True) as repo:
                seconds = way(repo, contents)
            shutil.rmtree(place)
            best[name] = min(best.get(name, seconds), seconds)
    return {name: seconds / len(contents) * 1e6 for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=4096, help="of each object, in bytes")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where to store (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    origin = provenance()
    print_provenance(origin)
    contents = [os.urandom(options.size) for _ in range(options.count)]
    results = measure(contents, options.dir, options.rounds)
    print(f"{options.count} objects of {options.size} bytes, {BACKEND} code")
    for name, microseconds in results.items():
        print(f"{name:32}{microseconds:8.1f} µs{results['one by one'] / microseconds:8.2f} × one by one")
    if options.json:
        options.json.write_text(json.dumps({"provenance": origin, "microseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
