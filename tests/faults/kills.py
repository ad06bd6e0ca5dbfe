"""Kills an import at many points, in a process that `inject.c` is preloaded into; prints an account as JSON.

``kills.py ROOT COUNT SEED``: COUNT kills, a third each among objects, streams and images, and references.  What is
being written when the process dies is told by a trace that it leaves.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import anyio

sys.path.append(str(Path(__file__).parents[2]))
from composefs_async.digest import Algorithm
from composefs_async.oci import pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.repository import Repository
from tests.faults.driver import State
from tests.maintenance.crashing import PLATFORM, archive

FILES = 150
PLACES = ("objects", "streams and images", "references")


def place_of(line: str) -> str:
    """Among what a line of the trace is."""
    path = line.partition(" ")[2]
    if "/refs" in path:
        return "references"
    if "/streams" in path or "/images" in path or line.startswith("syncfs"):
        return "streams and images"
    return "objects"


class Import:
    def __init__(self, root: Path) -> None:
        self.root, self.base = root, root / "base"
        writer = OciLayoutWriter(root / "layout")
        layers = [writer.add_layer(archive(name, *range(100, 100 + 40 * FILES, 40))) for name in "ab"]
        writer.add_image(layers, tag="image", platform=PLATFORM)
        Repository.init(self.base, algorithm=Algorithm.SHA256, insecure=True).close()
        self.library = ctypes.CDLL(None)

    def work(self, path: Path) -> None:
        async def work() -> None:
            async with Repository.open_path(path) as repo:
                await pull(repo, f"oci:{self.root}/layout:image", tag="image", platform=PLATFORM)

        anyio.run(work)

    def copy(self) -> Path:
        shutil.rmtree(self.root / "work", ignore_errors=True)
        return Path(shutil.copytree(self.base, self.root / "work", symlinks=True))

    def killed(self, path: Path, at: int) -> list[str]:
        """The trace of an import that is killed before its write number *at*, or not if that is 0."""
        trace = self.root / "trace"
        pid = os.fork()
        if pid == 0:
            fd = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            self.library.fault_trace(os.fsencode(path), fd, at)
            self.work(path)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) == bool(at), status
        assert not at or os.WTERMSIG(status) == signal.SIGKILL
        return trace.read_text().splitlines()


def main(root: Path, count: int, seed: int) -> None:
    work, chance = Import(root), random.Random(seed)
    before = State.read(work.copy())
    path = work.copy()
    whole = work.killed(path, 0)
    after = State.read(path)
    points = {place: [at for at, line in enumerate(whole, 1) if place_of(line) == place] for place in PLACES}
    died, wrong = Counter[str](), list[str]()
    for number in range(count):
        at = chance.choice(points[PLACES[number % len(PLACES)]])
        path = work.copy()
        trace = work.killed(path, at)
        place = place_of(trace[-1])
        died[place] += 1
        now = State.read(path)
        if now.problems or now.references not in (before.references, after.references):
            wrong.append(f"killed at {at}, among {place}: {sorted(now.problems)}")
        if number % 10 == 0:
            work.work(path)
            if State.read(path) != after:
                wrong.append(f"killed at {at}, among {place}: the next run ends otherwise")
    print(json.dumps({"kills": sum(died.values()), "among": died, "points": len(whole), "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
