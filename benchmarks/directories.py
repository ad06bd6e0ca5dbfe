"""Directories as images, as whole commands, against mkcomposefs and cfsctl in the same run.

    python benchmarks/directories.py [DIRECTORY] [--dir /dev/shm] [--rounds N] [--json FILE]

DIRECTORY, by default /usr/share, is copied below ``--dir`` first, so that all programs read from the same place.  Each
row is one kind of work, each program does it in turn, ``--rounds`` times; the best counts.

*digest*: only the digest of the image (``mkcomposefs --print-digest-only``, ``compute-id``).  *image*: the files are
stored and the image is written (``mkcomposefs --digest-store``, ``create-image``).  What programs print must be equal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from imports import OURS, Run, run
from provenance import print_provenance, provenance


@dataclass(frozen=True)
class Program:
    """Something that makes images of directories; its functions take the directory and a place of its own."""

    name: str
    work: str
    command: Callable[[str, str], list[str]]
    init: Callable[[str], list[str]] | None = None
    """The command that makes a repository in the place."""


AS_IS = "--no-propagate-usr-to-root"
INIT = ["init", "--insecure", "--algorithm", "fsverity-sha256-12"]


def c_programs(name: str, command: list[str]) -> list[Program]:
    return [
        Program(name, "digest, C", lambda source, place: [*command, "--print-digest-only", source]),
        Program(
            name,
            "image, C",
            lambda source, place: [
                *command,
                f"--digest-store={place}/store",
                "--print-digest",
                source,
                f"{place}/image",
            ],
        ),
    ]


def rust_programs(name: str, command: list[str]) -> list[Program]:
    return [
        *(
            Program(
                name,
                f"digest, {algorithm}",
                lambda source, place, algorithm=algorithm: [*command, "--hash", algorithm, "compute-id", AS_IS, source],
            )
            for algorithm in ("sha256", "sha512")
        ),
        Program(
            name,
            "image, sha256",
            lambda source, place: [*command, "--repo", f"{place}/repo", "create-image", AS_IS, source, "bench"],
            lambda place: [*command, "--repo", f"{place}/repo", *INIT],
        ),
    ]


def programs() -> list[Program]:
    """Those on PATH, and ours."""
    found: list[Program] = []
    if shutil.which("mkcomposefs"):
        found += c_programs("mkcomposefs", ["mkcomposefs"])
    if shutil.which("cfsctl"):
        found += rust_programs("cfsctl", ["cfsctl"])
    return [*found, *c_programs("ours", [*OURS, "mkcomposefs"]), *rust_programs("ours", OURS)]


def measure(source: str, base: Path, rounds: int) -> dict[tuple[str, str], list[Run]]:
    """By work and program."""
    runs: dict[tuple[str, str], list[Run]] = {}
    for _ in range(rounds):
        for program in sorted(programs(), key=lambda program: program.work):
            place = tempfile.mkdtemp(prefix="composefs-bench-", dir=base)
            if program.init:
                run(program.init(place), {})
            runs.setdefault((program.work, program.name), []).append(run(program.command(source, place), {}))
            shutil.rmtree(place)
    return runs


def show(runs: dict[tuple[str, str], list[Run]]) -> None:
    print(f"{'':32}{'best s':>9}{'cpu s':>8}{'RSS MiB':>9}{'times faster (cpu)':>22}")
    for (work, name), each in runs.items():
        best, cpu = min(found.seconds for found in each), min(found.cpu for found in each)
        rss = max(found.rss for found in each) >> 20
        reference = runs.get((work, "mkcomposefs")) or runs.get((work, "cfsctl"))
        ratio = ""
        if reference and name == "ours":
            wall, processor = min(found.seconds for found in reference), min(found.cpu for found in reference)
            ratio = f"{wall / best:.2f} ({processor / cpu:.2f})"
        print(f"{work + ', ' + name:32}{best:9.2f}{cpu:8.2f}{rss:9}{ratio:>22}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", default="/usr/share", metavar="DIRECTORY")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where to work (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    origin = provenance("mkcomposefs", "cfsctl")
    print_provenance(origin)
    with tempfile.TemporaryDirectory(prefix="composefs-bench-", dir=options.dir) as folder:
        run(["cp", "-a", options.directory, f"{folder}/source"], {})
        runs = measure(f"{folder}/source", Path(folder), options.rounds)
    show(runs)
    if options.json:
        report = {f"{work}, {name}": [asdict(found) for found in each] for (work, name), each in runs.items()}
        options.json.write_text(json.dumps({"provenance": origin, "runs": report}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
