"""How fast dump files become trees and trees become images: each stage, and a whole process against mkcomposefs.

    python benchmarks/images.py [--entries N] [--rounds N] [--dump FILE] [--json FILE]

Stages are the best of the rounds in CPU time of this process, in microseconds an entry, with the garbage collector
as Python sets it.  The tree is made up, always the same: three of four entries are external files, one in ten a
directory, and some are symlinks and small files; *labelled* gives each one of forty security labels.  ``--dump``
takes a file instead.  With `mkcomposefs` on PATH, ``mkcomposefs --from-file`` and the same work in a fresh Python
process, without the garbage collector as a command that ends soon may, take turns; their images must be equal.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from composefs_async import fsverity
from composefs_async.digest import Algorithm
from composefs_async.erofs.writer import Dialect, build_image
from composefs_async.tree import Directory
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.dumpwriter import write_dump

OURS = """
import gc, sys
gc.disable()
from composefs_async.erofs.writer import Dialect, choose_version, image_pieces
from composefs_async.tree.dumpfile import parse_dump
with open(sys.argv[1], "rb") as file:
    root = parse_dump(file.read())
with open(sys.argv[2], "wb") as file:
    file.writelines(image_pieces(root, version=choose_version(root), dialect=Dialect.C))
"""


def made_up(entries: int, labelled: bool) -> Iterator[str]:
    """Lines of a dump file."""
    rng = random.Random(entries)
    labels = [f" security.selinux=system_u:object_r:t{number}_t:s0\\x00" for number in range(40)]
    times = [f"{1_700_000_000 + 1000 * number}.{rng.choice([0, rng.randrange(10**9)])}" for number in range(400)]
    paths = [""]
    yield f"/ 0 40755 2 0 0 0 1600000000.0 - - -{labels[0] if labelled else ''}\n"
    count = 1
    while count < entries:
        path = f"{rng.choice(paths[-300:])}/package{count}"
        paths.append(path)
        names = [f"module_{rng.randrange(10**6)}_{number}.py" for number in range(rng.randrange(1, 19))]
        lines = [f"{path} 0 40755 2 0 0 0 {rng.choice(times)} - - -"]
        lines += [f"{path}/{name} {leaf(rng, count, number, rng.choice(times))}" for number, name in enumerate(names)]
        for line in lines[: entries - count]:
            yield line + (rng.choice(labels) if labelled else "") + "\n"
        count += len(lines)


def leaf(rng: random.Random, count: int, number: int, when: str) -> str:
    """The fields behind the path; some files have the content of others."""
    seed, chance = count + number, rng.random()
    if chance < 0.07:
        return f"10 120777 1 0 0 0 {when} ../../target{seed % 100} - -"
    if chance < 0.15:
        return f"12 100644 1 0 0 0 {when} - hello\\x20world\\n -"
    digest = hashlib.sha256(b"%d" % (seed % 50 if chance > 0.98 else seed)).hexdigest()
    return f"{rng.randrange(65, 10**6)} 100644 1 0 0 0 {when} {digest[:2]}/{digest[2:]} - {digest}"


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def stages(dump: bytes, rounds: int) -> dict[str, float]:
    """Microseconds an entry."""
    root: Directory = parse_dump(dump)
    image = build_image(root)
    works: dict[str, Callable[[], object]] = {
        "dump to tree": lambda: parse_dump(dump),
        "tree to dump": lambda: b"".join(write_dump(root)),
        "tree to image, layout 0 (C)": lambda: build_image(root, version=0, dialect=Dialect.C),
        "tree to image, layout 1": lambda: build_image(root, version=1),
        "tree to image, layout 2": lambda: build_image(root, version=2),
        "image to digest": lambda: fsverity.digest(image, Algorithm.SHA256),
    }
    entries = dump.count(b"\n")
    return {name: cpu_seconds(work, rounds) / entries * 1e6 for name, work in works.items()}


def process_seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def against_mkcomposefs(dump: bytes, rounds: int) -> dict[str, float]:
    """Seconds of whole processes, in turn."""
    program = shutil.which("mkcomposefs")
    if program is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        source, theirs, ours = (str(Path(folder) / name) for name in ("dump", "theirs", "ours"))
        Path(source).write_bytes(dump)
        best = {"mkcomposefs": float("inf"), "ours": float("inf")}
        for _ in range(rounds):
            best["mkcomposefs"] = min(best["mkcomposefs"], process_seconds([program, "--from-file", source, theirs]))
            best["ours"] = min(best["ours"], process_seconds([sys.executable, "-c", OURS, source, ours]))
        if Path(theirs).read_bytes() != Path(ours).read_bytes():
            raise SystemExit("the images differ")
    return {**best, "ratio": best["ours"] / best["mkcomposefs"]}


def show(results: dict[str, dict[str, float]], processes: dict[str, dict[str, float]]) -> None:
    print(f"{'µs an entry':<30}" + "".join(f"{name:>12}" for name in results))
    for stage in next(iter(results.values())):
        print(f"{stage:<30}" + "".join(f"{row[stage]:>12.2f}" for row in results.values()))
    for name, row in processes.items():
        if row:
            print(
                f"\n{name}, whole process: mkcomposefs {row['mkcomposefs']:.3f} s, composefs_async {row['ours']:.3f} s,"
                f" {row['ratio']:.2f} times as long"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, default=64_274, help="of the tree (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="best of so many (default: %(default)s)")
    parser.add_argument("--dump", type=Path, metavar="FILE", help="a dump file instead of made-up trees")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    if options.dump:
        dumps = {options.dump.name: options.dump.read_bytes()}
    else:
        forms = {"plain": False, "labelled": True}
        dumps = {name: "".join(made_up(options.entries, labelled)).encode() for name, labelled in forms.items()}
    results = {name: stages(dump, options.rounds) for name, dump in dumps.items()}
    processes = {name: against_mkcomposefs(dump, options.rounds) for name, dump in dumps.items()}
    show(results, processes)
    if options.json:
        about = {"machine": platform.machine(), "python": platform.python_version(), "cpus": os.cpu_count()}
        entries = {name: dump.count(b"\n") for name, dump in dumps.items()}
        report = {"about": about, "entries": entries, "us_per_entry": results, "process_seconds": processes}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
