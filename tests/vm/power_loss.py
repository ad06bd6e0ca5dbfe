"""What a power loss leaves of a repository: ``power_loss.py work`` works on it, ``power_loss.py check`` looks at it.

Both run in the virtual machine, for `crash`: the first marks the end of each step, the second runs on the disk as it
was at some point, and knows by the last mark which names must be there.  All are whole at any time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from maintenance.crashing import Contents, Images, problems

from composefs_async.digest import Algorithm
from composefs_async.repository import Repository

REPOSITORY = Path("/data/repo")
WHOLE = Path("/tmp/whole")
Step = Callable[[Images], object]


def opened(work: Callable[[Repository], object]) -> Step:
    def run(images: Images) -> None:
        with Repository.open_path(REPOSITORY) as repo:
            work(repo)

    return run


def init(images: Images) -> None:
    """Both, this one with fs-verity; the other is what a repair takes from."""
    for path in (REPOSITORY, WHOLE):
        Repository.init(path, algorithm=Algorithm.SHA256, insecure=path == WHOLE).close()
    images.pull(WHOLE, "b", "tag")


def hurt(images: Images) -> None:
    """As if a disk had lost some of what it had."""
    for name in sorted(Contents.read(REPOSITORY).needed)[::3]:
        (REPOSITORY / "objects" / name).unlink()
    os.sync()


PLAN: dict[str, tuple[Step, dict[str, str]]] = {
    "init": (init, {}),
    "pulled": (lambda images: images.pull(REPOSITORY, "a", "tag"), {"tag": "a"}),
    "replaced": (lambda images: images.pull(REPOSITORY, "b", "tag"), {"tag": "b"}),
    "collected": (opened(lambda repo: repo.gc()), {"tag": "b"}),
    "hurt": (hurt, {"tag": "b"}),
    "repaired": (opened(lambda repo: repo.repair([WHOLE])), {"tag": "b"}),
}
"""Steps by the mark at their end, each with the tags that are there then, and the images that these name."""


def work(images: Images) -> None:
    for mark, (step, _) in PLAN.items():
        step(images)
        subprocess.run(["mark", mark], check=True)


def check(images: Images) -> None:
    marks = [*PLAN]
    at = marks.index(os.environ["VM_MARK"])
    around = marks[at : at + 2]
    found = tags(images)
    assert found in [PLAN[mark][1] for mark in around], found
    if "hurt" not in around:
        assert problems(REPOSITORY) == []
        assert len(Contents.read(REPOSITORY).names) == len(found)


def tags(images: Images) -> dict[str, str]:
    """Of each tag the image that its link names, whether that is whole or not."""
    by_digest = {digest: name for name, digest in images.digests.items()}
    links = (REPOSITORY / "streams/refs/oci").glob("*")
    return {link.name: by_digest[os.readlink(link).rpartition("oci-manifest-")[2]] for link in links}


if __name__ == "__main__":
    {"work": work, "check": check}[sys.argv[1]](Images(Path(sys.argv[2])))
