"""Programs that work on one repository at the same time.

``python -m tests.maintenance.working ROLE REPOSITORY IMAGES SECONDS SEED``.

*import* has tags of its own, which nobody else touches, and looks after each step whether all of them are whole; some
of its pulls are killed.  *collect* collects garbage, checks, and drops leases.  *cfsctl* does the same with that
program.  Each prints how often it did what; an error is the end.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from composefs_async._maintenance import leases
from composefs_async.digest import ObjectId
from composefs_async.errors import RepositoryInUseError
from composefs_async.naming import tag_reference
from composefs_async.oci import catalogue
from composefs_async.repository import Repository

from .crashing import IMAGES, Images, interrupt, reach

TAGS = 3


class Importer:
    def __init__(self, path: Path, images: Images, chance: random.Random, seed: int) -> None:
        self.path, self.images, self.chance = path, images, chance
        self.names: dict[str, str] = {}
        self.tags = [f"{seed}-{number}" for number in range(TAGS)]

    def step(self) -> str:
        tag = self.chance.choice(self.tags)
        if tag in self.names and self.chance.random() < 0.4:
            with Repository.open_path(self.path) as repo:
                catalogue.untag(repo, tag)
            del self.names[tag]
            return "untagged"
        image = self.chance.choice(sorted(IMAGES))
        work = partial(self.images.pull, self.path, image, tag)
        if self.chance.random() < 0.5 and interrupt(work, self.chance.randint(1, 80)):
            if self.is_there(tag, image):
                self.names[tag] = image
            return "pull killed"
        work()
        self.names[tag] = image
        return "pulled"

    def is_there(self, tag: str, image: str) -> bool:
        with Repository.open_path(self.path) as repo, suppress(LookupError):
            return catalogue.open_image(repo, tag).manifest.digest == self.images.digests[image]
        return False

    def check(self) -> None:
        """All is there, whatever others do meanwhile: no lock is taken."""
        for tag, image in self.names.items():
            top = (self.path / "streams/refs" / tag_reference(tag)).resolve(strict=True)
            assert reach(self.path, ObjectId.from_path(str(top.relative_to(self.path.resolve()))))
            assert self.is_there(tag, image)


class Collector:
    def __init__(self, path: Path, images: Images, chance: random.Random, seed: int) -> None:
        self.path, self.chance = path, chance

    def step(self) -> str:
        with Repository.open_path(self.path) as repo:
            match self.chance.randrange(8):
                case 0:
                    errors = [each.text for each in repo.fsck().errors]
                    assert not errors, errors
                    return "checked"
                case 1:
                    for each in repo.leases():
                        repo.drop_lease(each.manifest_digest)
                    return "leases dropped"
                case 2:
                    leases.begin(repo._state, f"sha256:{64 * '1'}", "nowhere", 0.01)
                    return "lease begun"
                case _:
                    try:
                        return "collected" if repo.gc(timeout=self.chance.choice([0.1, 5])).objects_removed else "clean"
                    except RepositoryInUseError:
                        return "gave up"

    def check(self) -> None:
        pass


class Cfsctl(Importer):
    """The same with ``cfsctl``, whose gc can find the tags of others half-way replaced, and fails then."""

    def step(self) -> str:
        tag = self.chance.choice(self.tags)
        if self.chance.random() < 0.3:
            return "collected" if self.run("gc") else "gc failed"
        if tag in self.names and self.chance.random() < 0.4:
            assert self.run("oci", "untag", tag)
            del self.names[tag]
            return "untagged"
        image = self.chance.choice(sorted(IMAGES))
        assert self.run("oci", "pull", f"oci:{self.images.directory}:{image}", tag)
        self.names[tag] = image
        return "pulled"

    def run(self, *arguments: str) -> bool:
        command = ["cfsctl", "--insecure", "--repo", str(self.path), *arguments]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
        return done.returncode == 0


ROLES: dict[str, Callable[[Path, Images, random.Random, int], Importer | Collector]] = {
    "import": Importer,
    "collect": Collector,
    "cfsctl": Cfsctl,
}


def steps(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def main(role: str, path: str, directory: str, seconds: str, seed: str) -> None:
    worker = ROLES[role](Path(path), Images(Path(directory)), random.Random(int(seed)), int(seed))
    done = Counter[str]()
    for _ in steps(float(seconds)):
        done[worker.step()] += 1
        worker.check()
    print(role, dict(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
