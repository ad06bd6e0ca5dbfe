"""How fast fs-verity digests are: every implementation that runs here, against hashlib on the same blocks.

    python benchmarks/digest.py [--size MIB] [--rounds N] [--json FILE]

The measure is MB/s (10^6) of hashing the 4096-byte blocks of one buffer.  The baseline is hashlib called block by
block in one thread, which is what the Python twin does.  Each figure is the best of the rounds, and the rounds go
over all candidates in turn, so that a disturbance does not hit one candidate alone.  With `fsverity` on PATH the
whole process ``fsverity digest FILE`` is compared with a whole process of this package's digest of the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from provenance import print_provenance, provenance

from composefs_async import _native
from composefs_async.digest import BLOCK_SIZE, Algorithm

Work = Callable[[memoryview], object]


def hashlib_blocks(algorithm: Algorithm) -> Work:
    new = getattr(hashlib, algorithm.value)

    def work(data: memoryview) -> None:
        for at in range(0, len(data), BLOCK_SIZE):
            new(data[at : at + BLOCK_SIZE]).digest()

    return work


def native_blocks(algorithm: Algorithm, name: str) -> Work:
    from composefs_async._native import _core

    return lambda data: _core.hash_blocks(data, algorithm.number, name)


def native_files(algorithm: Algorithm, size: int) -> Work:
    """Whole digests of files of *size* bytes in one batch."""
    from composefs_async._native import _core

    return lambda data: _core.digest_many(
        [data[at : at + size] for at in range(0, len(data) - size + 1, size)], algorithm.number
    )


def candidates(algorithm: Algorithm) -> dict[str, Work]:
    found: dict[str, Work] = {"hashlib": hashlib_blocks(algorithm)}
    if _native.BACKEND == "native":
        found |= {name: native_blocks(algorithm, name) for name in _native.FEATURES[algorithm.value]}
        found["files of 4 KiB"] = native_files(algorithm, 4096)
        found["files of 100 KiB"] = native_files(algorithm, 102_400)
    return found


def speed(work: Work, data: memoryview, threads: int) -> float:
    """MB/s of all threads together, each with *data* of its own size but the same bytes."""
    start = threading.Barrier(threads + 1)

    def run() -> None:
        start.wait()
        work(data)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return threads * len(data) / (time.perf_counter() - began) / 1e6


def measure(algorithm: Algorithm, data: memoryview, rounds: int) -> dict[str, dict[str, float]]:
    works = candidates(algorithm)
    best = {name: {1: 0.0, 2: 0.0} for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            for threads in (1, 2):
                best[name][threads] = max(best[name][threads], speed(work, data, threads))
    base = best["hashlib"][1]
    return {
        name: {"1 thread": found[1], "2 threads": found[2], "ratio": found[1] / base, "scaling": found[2] / found[1]}
        for name, found in best.items()
    }


OURS = """
import sys
from composefs_async import fsverity
from composefs_async.digest import Algorithm
hasher = fsverity.Hasher(Algorithm(sys.argv[1]))
with open(sys.argv[2], "rb", buffering=0) as file:
    while piece := file.read(1 << 20):
        hasher.update(piece)
print(hasher.id().text)
"""


def process_seconds(command: list[str], rounds: int) -> tuple[float, str]:
    best, said = float("inf"), ""
    for _ in range(rounds):
        began = time.perf_counter()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        best = min(best, time.perf_counter() - began)
    return best, said


def against_fsverity(data: memoryview, rounds: int) -> dict[str, dict[str, float]]:
    program = shutil.which("fsverity")
    if program is None:
        return {}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "content")
        Path(path).write_bytes(data)
        for algorithm in Algorithm:
            name = algorithm.value
            theirs, expected = process_seconds([program, "digest", f"--hash-alg={name}", path], rounds)
            ours, found = process_seconds([sys.executable, "-c", OURS, name, path], rounds)
            if found != expected:
                raise SystemExit(f"fsverity says {expected}, we say {found}")
            results[name] = {"fsverity": theirs, "ours": ours, "ratio": theirs / ours}
    return results


def show(results: dict[str, dict[str, dict[str, float]]], processes: dict[str, dict[str, float]]) -> None:
    for algorithm, rows in results.items():
        print(f"\n{algorithm:<20}{'1 thread':>12}{'2 threads':>12}{'/ hashlib':>12}{'2 / 1':>8}")
        for name, row in rows.items():
            speeds = f"{row['1 thread']:>7.0f} MB/s{row['2 threads']:>7.0f} MB/s"
            print(f"  {name:<18}{speeds}{row['ratio']:>12.2f}{row['scaling']:>8.2f}")
    for algorithm, row in processes.items():
        print(
            f"\n{algorithm}, whole process: fsverity digest {row['fsverity']:.3f} s, "
            f"composefs_async {row['ours']:.3f} s, ratio {row['ratio']:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=32, metavar="MIB", help="of the buffer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="best of so many (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    origin = provenance("fsverity")
    print_provenance(origin)
    data = memoryview(random.Random(0).randbytes(options.size << 20))
    results = {algorithm.value: measure(algorithm, data, options.rounds) for algorithm in Algorithm}
    processes = against_fsverity(data, options.rounds)
    show(results, processes)
    if options.json:
        report = {"provenance": origin, "size_mib": options.size, "speed_mb_s": results, "process_seconds": processes}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
