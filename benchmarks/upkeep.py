"""Looking after a repository, beside cfsctl: garbage collection of one half of which nothing is needed.

Makes a repository of streams of 400 small objects each, every second of which has a reference; each program collects
the garbage of a fresh copy in each round, and checks the repository itself.  Of each command the best time, processor
time and peak memory of ``--rounds`` count.  The last line is the longest time that somebody who opened the repository
over and over had to wait during our gc.

    PATH=$PATH:/path/to/cfsctl python benchmarks/upkeep.py --dir /dev/shm
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from provenance import print_provenance, provenance

from composefs_async import Repository
from composefs_async._native import BACKEND
from composefs_async.splitstream import OCI_LAYER

OBJECTS_PER_STREAM = 400
OURS = [sys.executable, "-P", "-m", "composefs_async"]


@dataclass(frozen=True)
class Work:
    """A command of both programs."""

    name: str
    arguments: tuple[str, ...]
    only_ours: bool = False
    """cfsctl has nothing like it."""


COLLECTING = [Work("gc, dry run", ("gc", "--dry-run")), Work("gc", ("gc",)), Work("gc again", ("gc",))]
"""On a fresh copy.  The dry run fills our cache: what it is about comes first."""
READING = [
    Work("fsck", ("fsck",)),
    Work("fsck, metadata only", ("fsck", "--metadata-only")),
    Work("du", ("du",), only_ours=True),
]
"""On the repository itself: in a copy objects lie in the order of directories, not in the one they were stored in."""


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    seconds: float
    cpu: float
    """In seconds of processors."""
    memory: int
    """At its peak, in bytes."""

    def best(self, other: Cost | None) -> Cost:
        if other is None:
            return self
        return Cost(min(self.seconds, other.seconds), min(self.cpu, other.cpu), min(self.memory, other.memory))


def make(path: Path, objects: int) -> None:
    with Repository.init(path, insecure=True) as repo:
        for number in range(objects // (OBJECTS_PER_STREAM + 1)):
            seeds = (f"{number} {index}".encode() for index in range(OBJECTS_PER_STREAM))
            contents = [hashlib.blake2b(seed).digest() * 2 for seed in seeds]
            stored = repo.ensure_objects(contents)
            writer = repo.create_stream(OCI_LAYER)
            for each in stored:
                writer.write_reference(each.id)
                writer.add_external_size(each.size)
            digest = hashlib.sha256(b"".join(contents)).hexdigest()
            repo.write_stream(writer, f"oci-layer-sha256:{digest}", None if number % 2 else f"kept/{number}")


def run(command: list[str]) -> Cost:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def measure(template: Path, place: Path, programs: dict[str, list[str]], rounds: int) -> dict[str, dict[str, Cost]]:
    """The best costs by work and program."""
    costs: dict[str, dict[str, Cost]] = {}
    for _ in range(rounds):
        for program, command in programs.items():
            copy(template, place)
            for path, works in ((place, COLLECTING), (template, READING)):
                for work in works:
                    if work.only_ours and command is not OURS:
                        continue
                    cost = run([*command, "--repo", str(path), *work.arguments])
                    row = costs.setdefault(work.name, {})
                    row[program] = cost.best(row.get(program))
    return costs


def copy(template: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run(["cp", "-a", template, place], check=True)


def longest_wait(template: Path, place: Path) -> float:
    """Of somebody who opens the repository while our gc runs, in seconds."""
    copy(template, place)
    longest = 0.0
    with subprocess.Popen([*OURS, "--repo", str(place), "gc"], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            start = time.perf_counter()
            Repository.open_path(place).close()
            longest = max(longest, time.perf_counter() - start)
    return longest


def report(costs: dict[str, dict[str, Cost]]) -> None:
    print(f"{'':24}{'ours':>26}{'cfsctl':>26}{'ratio':>14}")
    for name, row in costs.items():
        ours, theirs = row["ours"], row.get("cfsctl")
        line = f"{name:24}" + "".join(
            f"{cost.seconds:8.2f} s{cost.cpu:7.2f} s{cost.memory >> 20:4} MiB" for cost in row.values()
        )
        if theirs:
            line += f"{ours.seconds / theirs.seconds:8.2f} ×{ours.cpu / theirs.cpu:5.2f} × of processors"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=200_500)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the repositories are (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    origin = provenance("cfsctl")
    print_provenance(origin)
    programs = {"ours": OURS}
    if cfsctl := shutil.which("cfsctl"):
        programs["cfsctl"] = [cfsctl]
    place = Path(tempfile.mkdtemp(prefix="composefs-bench-", dir=options.dir))
    try:
        make(place / "template", options.objects)
        print(f"{options.objects} objects, half of them garbage, {BACKEND} code")
        costs = measure(place / "template", place / "repo", programs, options.rounds)
        report(costs)
        wait = longest_wait(place / "template", place / "repo")
        print(f"longest wait to open during gc: {wait * 1000:.0f} ms")
    finally:
        shutil.rmtree(place)
    if options.json:
        figures = {name: {program: vars(cost) for program, cost in row.items()} for name, row in costs.items()}
        values = {"provenance": origin, "objects": options.objects, "longest_wait": wait, "costs": figures}
        options.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
