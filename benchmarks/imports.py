"""Whole imports, as commands, against cfsctl and umoci in the same run.

Each program imports each input into a fresh repository (or directory) below ``--dir``, in turn, ``--rounds`` times;
the best time counts.  The time is that of the whole command, from starting it to its end.

    python benchmarks/imports.py A B A-zstd T --dir /dev/shm
    python benchmarks/imports.py A --dir /var/tmp           # a disk instead of memory

Rows: ``ours`` uses the native code, ``ours, python`` does not.  ``again`` pulls what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from inputs import DEFAULT_CACHE, Input, make_input
from provenance import print_provenance, provenance

MEMORY = Path("/dev/shm")
NAMES = ["A", "B", "A-zstd", "T"]
OURS = [sys.executable, "-P", "-m", "composefs_async"]


@dataclass(frozen=True)
class Run:
    """One command."""

    seconds: float
    cpu: float
    """Seconds of processor time, user and system."""
    rss: int
    """Peak resident memory of the process, in bytes."""


@dataclass(frozen=True)
class Program:
    """Something that imports images; `command` takes the place to import to and the input."""

    name: str
    prepare: Callable[[Path], list[str] | None]
    command: Callable[[Path, Input], list[str]]
    environment: dict[str, str]


def run(command: list[str], environment: dict[str, str], stdin: Path | None = None) -> Run:
    """Run to the end; a failure ends the benchmark with what the command said."""
    with tempfile.TemporaryFile() as said, open(stdin or os.devnull, "rb") as source:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=said, stderr=said, env=os.environ | environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{said.read().decode(errors='replace')}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def settle(given: Input) -> None:
    """Have the input in the page cache, and as much free memory as it needs at hand.

    A virtual machine may have given memory back that was free for a second; the next to use it waits for it.
    """
    block = bytes(1 << 20)
    with tempfile.TemporaryFile(dir=MEMORY) as filler:
        for _ in range((2 * given.tar_bytes) >> 20):
            filler.write(block)
    for blob in (Path(given.path) / "blobs/sha256").iterdir():
        with blob.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def ours(name: str, native: str) -> Program:
    return Program(
        name,
        lambda place: [*OURS, "--repo", str(place), "init", "--insecure"],
        lambda place, given: [*OURS, "--repo", str(place), *_import(given)],
        {"COMPOSEFS_ASYNC_NATIVE": native},
    )


def _import(given: Input) -> list[str]:
    if given.name == "T":
        return ["oci", "import-layer", diff_id(given)]
    return ["oci", "pull", f"oci:{given.path}", "bench"]


def programs(given: Input) -> list[Program]:
    """Those that are on PATH and can take the input, the reference first."""
    found = []
    if shutil.which("cfsctl"):
        found.append(
            Program(
                "cfsctl",
                lambda place: ["cfsctl", "--insecure", "--repo", str(place), "init", "--insecure"],
                lambda place, given: ["cfsctl", "--insecure", "--repo", str(place), *_import(given)],
                {},
            )
        )
    if shutil.which("umoci") and given.name in ("A", "B"):
        found.append(
            Program(
                "umoci",
                lambda place: None,
                lambda place, given: ["umoci", "unpack", "--image", f"{given.path}:latest", str(place)],
                {},
            )
        )
    return [*found, ours("ours", "require"), ours("ours, python", "off")]


def layer_file(given: Input) -> Path:
    """The blob of the only layer."""
    blobs = Path(given.path) / "blobs/sha256"
    return max(blobs.iterdir(), key=lambda path: path.stat().st_size)


def diff_id(given: Input) -> str:
    """Of an unpacked layer: the name of its blob."""
    return f"sha256:{layer_file(given).name}"


def measure(given: Input, base: Path, rounds: int) -> dict[str, list[Run]]:
    """Every program in turn, so that a machine whose speed drifts does so for all of them."""
    runs: dict[str, list[Run]] = {}
    places = []
    for _ in range(rounds):
        for program in programs(given):
            place = Path(tempfile.mkdtemp(prefix="composefs-bench-", dir=base)) / "repo"
            places.append(place.parent)
            if prepare := program.prepare(place):
                run(prepare, program.environment)
            stdin = layer_file(given) if given.name == "T" else None
            command = program.command(place, given)
            settle(given)
            runs.setdefault(program.name, []).append(run(command, program.environment, stdin))
            if given.name != "T" and program.prepare(place):
                runs.setdefault(f"{program.name}, again", []).append(run(command, program.environment))
            if base == MEMORY:
                shutil.rmtree(place.parent)
    for place in places:  # at the end: a file system that has just deleted much is slow for minutes
        shutil.rmtree(place, ignore_errors=True)
    return runs


def show(given: Input, runs: dict[str, list[Run]]) -> None:
    print(f"\n{given.name}: {given.layers} layer(s), {given.entries} entries, {given.packed_bytes >> 20} MiB packed")
    print(f"{'':24}{'best s':>9}{'median s':>10}{'cpu s':>8}{'RSS MiB':>9}{'× cfsctl':>10}")
    for name, each in runs.items():
        best = min(each, key=lambda found: found.seconds)
        median = sorted(found.seconds for found in each)[len(each) // 2]
        reference = runs.get("cfsctl, again" if name.endswith("again") else "cfsctl")
        ratio = f"{min(found.seconds for found in reference) / best.seconds:.2f}" if reference else "-"
        rss = max(found.rss for found in each) >> 20
        print(f"{name:24}{best.seconds:9.2f}{median:10.2f}{best.cpu:8.2f}{rss:9}{ratio:>10}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"inputs: {', '.join(NAMES)} (all)")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the inputs are kept (%(default)s)")
    parser.add_argument("--dir", type=Path, default=MEMORY, help="where to import to (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the inputs' sizes")
    parser.add_argument("--rounds", type=int, default=3, help="how often; the best counts (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    if unknown := {*options.names} - {*NAMES}:
        parser.error(f"no such input: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    origin = provenance("cfsctl", "umoci")
    print_provenance(origin)
    results: dict[str, object] = {"provenance": origin}
    for name in options.names:
        given = make_input(name, options.cache, options.scale)
        runs = measure(given, options.dir, options.rounds)
        show(given, runs)
        results[name] = {
            "input": asdict(given),
            "runs": {program: [asdict(found) for found in each] for program, each in runs.items()},
        }
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
