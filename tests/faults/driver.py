"""Runs the fault table in a process that `inject.c` is preloaded into, and prints a line of JSON for all that is wrong.

``driver.py ROOT BACKEND STRIDE SEED``: BACKEND is asyncio, uvloop or trio; of the table, each STRIDE-th case from SEED
on is tried.  A case is an operation, a call of the kernel, an error, and which of the calls answers with it, or from
which one on all do.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio

sys.path.append(str(Path(__file__).parents[2]))
from composefs_async._sys import files
from composefs_async.digest import Algorithm
from composefs_async.errors import ComposefsError, MountError
from composefs_async.oci import catalogue, pull
from composefs_async.oci.image_repair import repair as repair_images
from composefs_async.repository import Repository
from composefs_async.results import FsckResult, GcResult, RepairResult
from tests.maintenance import generations
from tests.maintenance.crashing import PLATFORM, Images

HANGS = 60  # seconds

PATHS = (errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOMEM, errno.EINTR)
CHANGES = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EPERM, errno.EINTR)
TABLE: dict[str, tuple[int, ...]] = {
    "open": (*PATHS, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS),
    "read": (errno.EIO, errno.ESTALE, errno.EBADMSG, errno.ENOMEM, errno.EINTR),
    "write": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINTR),
    "stat": PATHS,
    "access": PATHS,
    "readlink": PATHS,
    "link": (*CHANGES, errno.EDQUOT, errno.EMLINK),
    "symlink": CHANGES,
    "rename": CHANGES,
    "unlink": CHANGES,
    "mkdir": CHANGES,
    "ioctl": (errno.EIO, errno.EACCES, errno.ENOMEM, errno.EINTR),
    "flock": (errno.ENOLCK, errno.EIO, errno.EINTR),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "syncfs": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "statvfs": (errno.EIO, errno.ESTALE),
    "listing": (errno.EIO, errno.ESTALE, errno.EACCES),
    "copy": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "thread": (errno.EAGAIN,),
    "mount": (errno.EPERM, errno.ENOMEM, errno.EBUSY),
}
"""Calls of the kernel, as `inject.c` names them, and what each can answer.  That something is not there is no fault."""


# -- what is done ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    prepare: Callable[[Path], object]
    """Makes the repository that it works on."""
    work: Callable[[Path], object]
    changes: str = ""
    """What it may change part of: ``objects`` it adds or removes, or ``names``, before it fails."""


class Workload:
    def __init__(self, root: Path, backend: str) -> None:
        self.root = root
        self.images = Images(root / "images")
        self.old_image = generations.Image.make(root / "old-image")
        self._options: dict[str, Any] = {"backend": "trio" if backend == "trio" else "asyncio"}
        if backend != "trio":
            self._options["backend_options"] = {"use_uvloop": backend == "uvloop"}

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return anyio.run(partial(function, *args, **options), **self._options)

    async def opened(self, path: Path, work: Callable[[Repository], Any]) -> Any:
        async with Repository.open_path(path) as repo:
            return await work(repo)

    def on(self, path: Path, work: Callable[[Repository], Any]) -> Any:
        """Run *work* with an open repository on the event loop."""
        return self.run(self.opened, path, work)

    def make(self, path: Path, *names: str) -> None:
        Repository.init(path, algorithm=Algorithm.SHA256, insecure=True).close()
        for name in names:
            self.pull(path, name)

    def pull(self, path: Path, name: str = "a") -> Any:
        reference = f"oci:{self.images.directory}:{name}"
        return self.on(path, lambda repo: pull(repo, reference, tag=name, platform=PLATFORM))

    def with_garbage(self, path: Path) -> None:
        self.make(path, "a", "b")
        with Repository.open_path(path) as repo:
            catalogue.untag(repo, "a")
            (path / "objects/.tmp-object-1234").touch()

    def damaged(self, path: Path) -> None:
        self.make(path, "a", "b")
        found = sorted(each for each in (path / "objects").glob("??/*") if each.stat().st_size)
        found[0].unlink()
        content = found[1].read_bytes()
        found[1].chmod(0o644)
        found[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def repair(self, path: Path) -> RepairResult:
        return self.on(path, lambda repo: repo.repair_async([self.root / "whole"]))

    def repair_images(self, path: Path) -> RepairResult:
        return self.on(path, lambda repo: repair_images(repo, [f"oci:{self.images.directory}"]))

    def old(self, path: Path) -> None:
        generations.february(path, Algorithm.SHA256, self.old_image)

    def reset(self, path: Path) -> None:
        Repository.reset_metadata(path, algorithm=Algorithm.SHA256, erofs_version=2, insecure=True).close()

    def gc(self, path: Path) -> GcResult:
        found: GcResult = self.on(path, lambda repo: repo.gc_async())
        return found

    def fsck(self, path: Path) -> FsckResult:
        found: FsckResult = self.on(path, lambda repo: repo.fsck_async())
        return found

    def mount(self, path: Path) -> None:
        [image] = [each.name for each in (path / "images").iterdir() if each.is_symlink()]

        async def mount(repo: Repository) -> None:
            os.close(await repo.mount_async(image))

        self.on(path, mount)

    def operations(self) -> dict[str, Operation]:
        digest = self.images.digests["b"]
        return {
            "pull": Operation(lambda path: self.make(path, "b"), self.pull, "objects"),
            "gc": Operation(self.with_garbage, self.gc, "objects names"),
            "fsck": Operation(lambda path: self.make(path, "a"), self.fsck),
            "repair": Operation(self.damaged, self.repair, "objects"),
            "repair images": Operation(self.damaged, self.repair_images, "objects"),
            "tag": Operation(
                lambda path: self.make(path, "a", "b"),
                lambda path: self.on(path, lambda repo: catalogue.tag_async(repo, digest, "a")),
            ),
            "upgrade": Operation(self.old, lambda path: self.run(Repository.upgrade_async, path)),
            "reset": Operation(lambda path: self.make(path, "a"), self.reset, "names"),
            "mount": Operation(lambda path: self.make(path, "a"), self.mount),
        }


# -- what is left ------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What a repository holds and what is wrong with it."""

    references: dict[str, str]
    objects: frozenset[str]
    names: frozenset[str]
    problems: frozenset[str]
    metadata: bytes

    @classmethod
    def read(cls, path: Path) -> State:
        links = [each for each in path.glob("[si]*s/**/*") if each.is_symlink()]
        references = {str(each.relative_to(path)): os.readlink(each) for each in links if "refs" in each.parts}
        objects = frozenset(f"{each.parent.name}/{each.name}" for each in (path / "objects").glob("??/[0-9a-f]*"))
        names = frozenset(str(each.relative_to(path)) for each in links if "refs" not in each.parts)
        metadata, problems = b"", list[str]()
        with suppress(FileNotFoundError):
            metadata = (path / "meta.json").read_bytes()
            with Repository.open_path(path) as repo:
                problems = [each.text for each in repo.fsck().findings if not each.is_notice]
        return cls(references, objects, names, frozenset(problems), metadata)


def between(one: frozenset[str], now: frozenset[str], other: frozenset[str]) -> bool:
    return one & other <= now <= one | other


def wrong_with(now: State, before: State, after: State, changes: str) -> list[str]:
    found = []
    part = "names" in changes and before.references.items() >= now.references.items() >= after.references.items()
    if now.references not in (before.references, after.references) and not part:
        found.append("references are neither as before nor as after")
    if now.objects not in (before.objects, after.objects) and not (
        "objects" in changes and between(before.objects, now.objects, after.objects)
    ):
        found.append("objects are neither as before nor as after")
    if not between(before.names, now.names, after.names):
        found.append("names are neither as before nor as after")
    if now.metadata not in (before.metadata, after.metadata):
        found.append("meta.json is another")
    if not now.problems <= before.problems:
        found.append(f"new problems: {sorted(now.problems - before.problems)}")
    return found


# -- cases -------------------------------------------------------------------------------------


class Injector:
    def __init__(self, root: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._root = os.fsencode(root)

    def arm(self, call: str = "", number: int = 0, at: int = 0, *, lasting: bool = False) -> None:
        self._library.fault_arm(self._root, call.encode(), number, at, int(lasting))

    def disarm(self) -> dict[str, int]:
        self._library.fault_disarm()
        return {call: self._library.fault_count(call.encode()) for call in TABLE}


@dataclass(frozen=True)
class Case:
    operation: str
    call: str
    number: int
    at: int
    lasting: bool

    def __str__(self) -> str:
        which = f"from {self.at} on" if self.lasting else f"number {self.at}"
        return f"{self.operation}: {self.call}, {which}: {errno.errorcode[self.number]}"


class Table:
    def __init__(self, root: Path, backend: str) -> None:
        self.root = root
        self.workload = Workload(root, backend)
        self.injector = Injector(root)
        self.workload.make(root / "whole", "a", "b")
        self.before: dict[str, State] = {}
        self.after: dict[str, State] = {}
        self.counts: dict[str, dict[str, int]] = {}
        self.operations = self.workload.operations()
        for name, operation in [*self.operations.items()]:
            operation.prepare(self._base(name))
            self.before[name] = State.read(self._copy(name))
            try:
                operation.work(self._copy(name))  # so that modules are there
            except MountError:
                del self.operations[name]
                continue
            work = self._copy(name)
            self.injector.arm()
            operation.work(work)
            self.counts[name] = self.injector.disarm()
            self.after[name] = State.read(work)

    def _base(self, name: str) -> Path:
        return self.root / f"base-{name}"

    def _copy(self, name: str) -> Path:
        files._tmpfile_refused.clear()
        shutil.rmtree(self.root / "work", ignore_errors=True)
        return Path(shutil.copytree(self._base(name), self.root / "work", symlinks=True))

    def cases(self) -> Iterator[Case]:
        for name in self.operations:
            for call, numbers in TABLE.items():
                for at in range(1, self.counts[name][call] + 1):
                    for number in numbers:
                        yield Case(name, call, number, at, lasting=False)
                    if errno.EIO in numbers:
                        yield Case(name, call, errno.EIO, at, lasting=True)

    def run(self, case: Case) -> list[str]:
        """What is wrong after it."""
        operation, path = self.operations[case.operation], self._copy(case.operation)
        resources, begun = self._resources(), time.monotonic()
        faulthandler.dump_traceback_later(HANGS, exit=True)
        self.injector.arm(case.call, case.number, case.at, lasting=case.lasting)
        wrong = []
        try:
            result = operation.work(path)
        except (ComposefsError, OSError) as error:
            self.injector.disarm()
            wrong += self._wrong_with_error(error)
        except BaseException as error:
            self.injector.disarm()
            wrong.append(f"{type(error).__name__} is no error of ours: {error}")
        else:
            self.injector.disarm()
            wrong += wrong_with_result(result, self.before[case.operation])
        finally:
            faulthandler.cancel_dump_traceback_later()
        if time.monotonic() - begun > HANGS / 2:
            wrong.append("it hung")
        if (left := self._resources()) != resources:
            wrong.append(f"leaks: {sorted(left - resources)}")
        before, after = self.before[case.operation], self.after[case.operation]
        wrong += wrong_with(State.read(path), before, after, operation.changes)
        try:
            operation.work(path)
        except BaseException as error:
            wrong.append(f"the next run fails: {error!r}")
        else:
            wrong += self._wrong_in_the_end(case.operation, State.read(path))
        return wrong

    def _wrong_in_the_end(self, name: str, now: State) -> list[str]:
        after = self.after[name]
        same = (now.references, now.problems, now.metadata) == (after.references, after.problems, after.metadata)
        return [] if same and now.objects >= after.objects else ["the next run ends otherwise than the first"]

    def _wrong_with_error(self, error: BaseException) -> list[str]:
        text, found = str(error), []
        if "\n" in text:
            found.append(f"a message of several lines: {text}")
        if isinstance(error, OSError) and not isinstance(error, ComposefsError) and error.errno != errno.EAGAIN:
            name = error.filename
            if not isinstance(name, str) or not name.startswith(("/", str(self.root))):
                found.append(f"no whole path in: {type(error).__name__}: {text}, raised {_place(error)}")
        return found

    def _resources(self) -> set[str]:
        others = [each for each in threading.enumerate() if any(pool in each.name for pool in ("AnyIO", "Trio"))]
        for each in others:  # a worker may not yet have let go of the error that it has told
            if "AnyIO" in each.name:
                each.join(HANGS)
        gc.collect()
        found = {each.name for each in threading.enumerate() if each not in others}
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{fd}")
                if target.startswith(str(self.root)):
                    found.add(f"{fd}: {target}")
        return found


def _place(error: BaseException) -> str:
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "composefs_async" in each.filename]
    return f"in {frames[-1].name} of {Path(frames[-1].filename).name}, line {frames[-1].lineno}"


def wrong_with_result(result: object, before: State) -> list[str]:
    """A check that ends in spite of a fault must not tell of damage that was not there."""
    findings = result.errors if isinstance(result, FsckResult) else ()
    if isinstance(result, RepairResult):
        findings = result.before.errors
    return [f"taken for damage: {each.text}" for each in findings if not (each.unread or each.text in before.problems)]


def main(root: Path, backend: str, stride: int, seed: int) -> None:
    table = Table(root, backend)
    done = failed = 0
    cases = [*table.cases()]
    for case in cases[seed % stride :: stride]:
        done += 1
        wrong = table.run(case)
        failed += bool(wrong)
        for each in wrong:
            print(json.dumps({"case": str(case), "wrong": each}), flush=True)
    print(json.dumps({"cases": done, "of": len(cases), "failed": failed, "operations": [*table.operations]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
