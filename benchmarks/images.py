"""How fast dump files, layers and images become trees, and trees become images; and how much memory they take.

    python benchmarks/images.py [--entries N] [--rounds N] [--dump FILE] [--json FILE]

Whole processes come first: ``mkcomposefs --from-file`` and our command of that name take turns, and their images must
be equal.  Stages are the best of the rounds in CPU time of this process, in microseconds an entry, with the garbage
collector as Python sets it.  Machines differ by a factor of two, so compare with the microseconds of mkcomposefs that
stand there, too.  Memory is what Python's allocator gave out: of a tree, and the peak of the writer above it.

The tree is made up, always the same: three of four entries are external files, one in ten a directory, and some are
symlinks and small files; *labelled* gives each one of forty security labels.  ``--dump`` takes a file instead.  The
layer is that tree as the splitstream of a tar has it; labels are left out there.
"""

from __future__ import annotations

import argparse
import filecmp
import gc
import hashlib
import json
import os
import random
import shutil
import stat
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tarfile import DIRTYPE, REGTYPE, SYMTYPE, USTAR_FORMAT, TarInfo

from imports import Run, run
from provenance import print_provenance, provenance

from composefs_async import fsverity
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.reader.tree import image_to_tree
from composefs_async.erofs.references import image_object_ids
from composefs_async.erofs.writer import Dialect, build_image
from composefs_async.oci.filesystem import TreeBuilder
from composefs_async.oci.tar.members import EntryReader, TarEntry
from composefs_async.tree import Directory, ExternalFile, InlineFile, Inode, Symlink
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.dumpwriter import write_dump
from composefs_async.tree.walk import walk

OURS = [sys.executable, "-P", "-m", "composefs_async", "mkcomposefs"]
CHUNKS = 512
"""Given to the reader at a time."""


def made_up(entries: int, labelled: bool) -> Iterator[str]:
    """Lines of a dump file."""
    rng = random.Random(entries)
    labels = [f" security.selinux=system_u:object_r:t{number}_t:s0\\x00" for number in range(40)]
    times = [f"{1_700_000_000 + 1000 * number}.{rng.choice([0, rng.randrange(10**9)])}" for number in range(400)]
    paths = [""]
    yield f"/ 0 40755 2 0 0 0 1600000000.0 - - -{labels[0] if labelled else ''}\n"
    count = 1
    while count < entries:
        above = rng.choice(paths[-300:])
        path = f"{above if len(above) < 60 else ''}/package{count}"
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


def as_layer(root: Directory) -> list[bytes | ObjectId]:
    """The chunks of a layer with the files, directories and symlinks of the tree."""
    chunks: list[bytes | ObjectId] = []
    inline = b""
    for path, inode in walk(root):
        if not isinstance(inode, Directory | ExternalFile | InlineFile | Symlink):
            continue
        inline += tar_header(path, inode)
        if isinstance(inode, ExternalFile) and inode.size > 64:
            chunks += [inline, ObjectId(inode.digest or bytes(32))]
            inline = bytes(-inode.size % 512)
        elif isinstance(inode, InlineFile):
            inline += inode.content + bytes(-len(inode.content) % 512)
    return [*chunks, inline + bytes(1024)]


def tar_header(path: bytes, inode: Inode) -> bytes:
    info = TarInfo(os.fsdecode(path.strip(b"/") or b"."))
    info.mode, info.uid, info.gid, info.mtime = stat.S_IMODE(inode.mode), inode.uid, inode.gid, inode.mtime_ns // 10**9
    info.type = DIRTYPE if isinstance(inode, Directory) else SYMTYPE if isinstance(inode, Symlink) else REGTYPE
    info.linkname = os.fsdecode(inode.target) if isinstance(inode, Symlink) else ""
    info.size = len(inode.content) if isinstance(inode, InlineFile) else getattr(inode, "size", 0)
    return info.tobuf(USTAR_FORMAT, "utf-8", "surrogateescape")


def read_layer(chunks: list[bytes | ObjectId], take: Callable[[list[TarEntry]], object]) -> None:
    reader = EntryReader()
    for at in range(0, len(chunks), CHUNKS):
        entries: list[TarEntry] = []
        reader.feed(chunks[at : at + CHUNKS], entries)
        take(entries)


def layer_tree(chunks: list[bytes | ObjectId]) -> Directory:
    builder = TreeBuilder()
    builder.begin_layer("layer")
    read_layer(chunks, builder.add)
    return builder.finish()


def stages(dump: bytes, rounds: int) -> dict[str, float]:
    """Microseconds an entry."""
    root: Directory = parse_dump(dump)
    image, layer = build_image(root), as_layer(root)
    works: dict[str, Callable[[], object]] = {
        "dump to tree": lambda: parse_dump(dump),
        "tree to dump": lambda: b"".join(write_dump(root)),
        "layer to entries": lambda: read_layer(layer, len),
        "layer to tree": lambda: layer_tree(layer),
        "tree to image, layout 0 (C)": lambda: build_image(root, version=0, dialect=Dialect.C),
        "tree to image, layout 1": lambda: build_image(root, version=1),
        "tree to image, layout 2": lambda: build_image(root, version=2),
        "image to digest": lambda: fsverity.digest(image, Algorithm.SHA256),
        "image to tree": lambda: image_to_tree(image),
        "image to object ids": lambda: image_object_ids(image),
    }
    entries = dump.count(b"\n")
    return {name: cpu_seconds(work, rounds) / entries * 1e6 for name, work in works.items()}


def memory(dump: bytes) -> dict[str, float]:
    """Bytes an entry."""
    lines, entries = dump.splitlines(keepends=True), dump.count(b"\n")
    tracemalloc.start()
    root = parse_dump(lines)
    tree, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    image = build_image(root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"tree": tree / entries, "writer, above it": (peak - tree) / entries, "image": len(image) / entries}


def against_mkcomposefs(source: Path, rounds: int) -> dict[str, Run]:
    """The best runs of whole processes, in turn."""
    program = shutil.which("mkcomposefs")
    if program is None:
        return {}
    runs: dict[str, list[Run]] = {"mkcomposefs": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = (Path(folder) / name for name in ("theirs", "ours"))
        for _ in range(rounds):
            runs["mkcomposefs"].append(run([program, "--from-file", str(source), str(theirs)], {}))
            runs["ours"].append(run([*OURS, "--from-file", str(source), str(ours)], {}))
        if not filecmp.cmp(theirs, ours, shallow=False):
            sys.exit("the images differ")
    return {name: min(each, key=lambda found: found.cpu) for name, each in runs.items()}


def show_processes(name: str, entries: int, processes: dict[str, Run]) -> None:
    if not processes:
        return
    theirs, ours = processes["mkcomposefs"], processes["ours"]
    print(
        f"{name}, --from-file of {entries} entries, CPU time: mkcomposefs {theirs.cpu:.3f} s"
        f" ({theirs.cpu / entries * 1e6:.2f} µs an entry, {theirs.rss >> 20} MiB),"
        f" ours {ours.cpu:.3f} s ({ours.rss >> 20} MiB), {ours.cpu / theirs.cpu:.2f} times as long"
    )


def show(title: str, digits: int, results: dict[str, dict[str, float]]) -> None:
    print(f"\n{title:<30}" + "".join(f"{name:>12}" for name in results))
    for stage in next(iter(results.values())):
        print(f"{stage:<30}" + "".join(f"{row[stage]:>12.{digits}f}" for row in results.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, default=64_274, help="of the tree (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="best of so many (default: %(default)s)")
    parser.add_argument("--dump", type=Path, metavar="FILE", help="a dump file instead of made-up trees")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    origin = provenance("mkcomposefs")
    print_provenance(origin)
    with tempfile.TemporaryDirectory() as folder:
        if options.dump:
            sources = {options.dump.name: options.dump}
        else:
            sources = {name: Path(folder) / name for name in ("plain", "labelled")}
            for name, path in sources.items():
                with open(path, "w", encoding="ascii") as file:
                    file.writelines(made_up(options.entries, name == "labelled"))
        # A child's peak memory is at least this process's, so there is nothing in memory yet.
        processes = {name: against_mkcomposefs(path, options.rounds) for name, path in sources.items()}
        dumps = {name: path.read_bytes() for name, path in sources.items()}
    entries = {name: dump.count(b"\n") for name, dump in dumps.items()}
    for name, best in processes.items():
        show_processes(name, entries[name], best)
    results = {name: stages(dump, options.rounds) for name, dump in dumps.items()}
    show("µs an entry", 2, results)
    sizes = {name: memory(dump) for name, dump in dumps.items()}
    show("bytes an entry", 0, sizes)
    if options.json:
        report = {
            "provenance": origin,
            "entries": entries,
            "us_per_entry": results,
            "bytes_per_entry": sizes,
            "processes": {name: {who: asdict(best) for who, best in each.items()} for name, each in processes.items()},
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
