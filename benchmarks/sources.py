"""Images from archives, pipes and containers-storage, into archives, and built of a tree, against other programs.

    python benchmarks/sources.py A --dir /dev/shm --scale 0.5

Each command runs ``--rounds`` times, in turn with the others of its table, into a fresh place; the best time counts, of
the whole command.  What is not on PATH is left out and named.  Inputs are those of `imports.py`, made from its image
directory: archives by skopeo, the store by skopeo below ``--dir``.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from inputs import DEFAULT_CACHE, make_input
from provenance import print_provenance, provenance

OURS = f"{sys.executable} -P -m composefs_async"


@dataclass(frozen=True)
class Row:
    """One program at one task."""

    task: str
    program: str
    seconds: float
    rss: int
    """Peak resident memory of its largest process, in bytes."""


@dataclass(frozen=True)
class Command:
    """A line for the shell; ``{place}`` is a fresh directory."""

    task: str
    program: str
    line: str
    prepare: str = "true"


def shell(line: str, place: Path) -> tuple[float, int]:
    """Run to the end; a failure ends the benchmark with what the command said."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        command = ["bash", "-o", "pipefail", "-c", line]
        process = subprocess.Popen(command, cwd=place, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{line}: exit code {process.returncode}\n{said.read().decode(errors='replace')}")
    return seconds, usage.ru_maxrss * 1024


def commands(layout: str, made: Path, driver: str, tree: str) -> Iterator[Command]:
    """All tasks; what `inputs_of` makes is in *made*."""
    init = f"{OURS} --repo r init --insecure"
    pull = f"{OURS} --repo r oci pull --no-image --progress none"
    store = f"containers-storage:[{driver}@{made}/store+{made}/run]localhost/a:1"
    skopeo = "skopeo copy -q --insecure-policy"
    yield Command("oci: gzip", "ours", f"{pull} {layout} a", init)
    yield Command("docker-archive, file", "ours", f"{pull} docker-archive:{made}/d.tar a", init)
    yield Command("docker-archive, pipe", "ours", f"cat {made}/d.tar | {pull} - a", init)
    podman = "podman --storage-driver vfs --root $PWD/s --runroot $PWD/t"
    yield Command("docker-archive, file", "podman load", f"{podman} load -q -i {made}/d.tar")
    yield Command("docker-archive, pipe", "podman load", f"cat {made}/d.tar | {podman} load -q")
    yield Command("containers-storage", "ours", f"{pull} '{store}' a", init)
    yield Command("containers-storage", "skopeo to dir", f"{skopeo} '{store}' dir:o")
    yield Command(
        "containers-storage",
        "cfsctl --local-fetch=auto",
        f"CONTAINERS_STORAGE_ROOT={made}/store cfsctl --insecure --repo r oci pull --local-fetch=auto "
        "containers-storage:localhost/a:1 a",
        "cfsctl --insecure --repo r init --insecure || mkdir r",
    )
    export = f"{OURS} --repo {made}/r oci copy a:1"
    yield Command("to oci-archive, plain", "ours", f"{export} oci-archive:- --layers plain > /dev/null")
    yield Command("to oci-archive, zstd", "ours", f"{export} oci-archive:o.tar --layers zstd")
    yield Command(
        "to oci-archive, zstd",
        "skopeo",
        f"{skopeo} --dest-compress-format zstd --dest-compress {layout} oci-archive:o.tar",
    )
    yield Command("build of a tree", "ours", f"{OURS} --repo r oci build t --directory {tree}:/t", init)
    umoci = "umoci init --layout l && umoci new --image l:t && umoci insert --image l:t"
    yield Command("build of a tree", "umoci insert", f"{umoci} {tree} /t")


def inputs_of(layout: str, made: Path, driver: str) -> None:
    """Make archive, store and repository."""
    copy = ["skopeo", "copy", "-q", "--insecure-policy", layout]
    subprocess.run([*copy, f"docker-archive:{made}/d.tar:localhost/a:1"], check=True)
    subprocess.run([*copy, f"containers-storage:[{driver}@{made}/store+{made}/run]localhost/a:1"], check=True)
    ours = [*OURS.split(), "--repo", str(made / "r")]
    subprocess.run([*ours, "init", "--insecure"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*ours, "oci", "pull", "--progress", "none", layout, "a:1"], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def fresh(base: Path) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="composefs-bench-", dir=base))
    try:
        yield place
    finally:
        subprocess.run(["umount", "-q", place / "store/overlay"], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(place, ignore_errors=True)


def measure(given: list[Command], base: Path, rounds: int) -> list[Row]:
    best: dict[Command, tuple[float, int]] = {}
    for _ in range(rounds):
        for command in given:
            with fresh(base) as place:
                shell(command.prepare, place)
                found = shell(command.line, place)
            best[command] = min(best.get(command, found), found)
    return [Row(command.task, command.program, *best[command]) for command in given]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", choices=["A", "B"], default="A", nargs="?")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where to work (%(default)s)")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--driver", default="overlay", choices=["vfs", "overlay"], help="of the store (%(default)s)")
    parser.add_argument("--tree", default="/usr/share")
    parser.add_argument("--only", metavar="TEXT", help="tasks that have this in their names")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    given = make_input(options.input, options.cache, options.scale)
    origin = provenance("cfsctl", "skopeo", "podman")
    print_provenance(origin)
    print(given)
    with fresh(options.dir) as made:
        inputs_of(given.reference, made, options.driver)
        wanted = list(commands(given.reference, made, options.driver, options.tree))
        here = [each for each in wanted if each.program == "ours" or shutil.which(each.program.split()[0])]
        for each in wanted:
            if each not in here:
                print(f"not on PATH: {each.program}")
        rows = measure([each for each in here if (options.only or "") in each.task], options.dir, options.rounds)
    for row in rows:
        print(f"{row.task:24} {row.program:28} {row.seconds:7.2f} s {row.rss >> 20:6} MiB")
    if options.json:
        record = {"provenance": origin, "input": asdict(given), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
