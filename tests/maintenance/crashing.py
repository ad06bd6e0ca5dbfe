"""Operations that are stopped at any of their steps, and what a repository is then; for the tests of crashes.

A *step* changes a name: link, symlink, rename, unlink, mkdir, rmdir, the creation of a file.  Nothing else can be seen
after a process has been killed.  `interrupt` runs an operation in a forked process, which ends before its n-th step
without a word to anybody, as if killed.  What a power loss leaves is the business of `flushing`.

What a repository holds is told by `Contents`, which reads everything and uses no code of upkeep.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import anyio

from composefs_async import fsverity
from composefs_async._maintenance.fsck import object_reader
from composefs_async._maintenance.gc import shards
from composefs_async._repo import batch
from composefs_async._sys import files
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.format import EROFS_MAGIC, SUPERBLOCK_OFFSET
from composefs_async.erofs.references import image_object_ids
from composefs_async.oci import Platform, pull
from composefs_async.oci.documents import REF_NAME
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.repository import Repository
from composefs_async.splitstream import BytesSource, SplitstreamReader
from composefs_async.splitstream.format import MAGIC

PLATFORM = Platform("linux", "amd64")
STEPS = ("link", "symlink", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "open")
"""Functions of `os` that change names; `open` only where it creates.  One more is in `files`."""
_KILLED = 77
_TOO_MANY = 1000


# -- interrupting ------------------------------------------------------------------------------


def interrupt(operation: Callable[[], object], at: int | None = None, *, native: bool = False) -> bool:
    """Run *operation* in a process that ends before step *at*; False if the operation ended before that.

    Args:
        native: leave batches to the native code, where they are one step each.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of pytest-xdist, which the child does not need
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _prepare(_Countdown(at or 0), native=native)
            operation()
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, _KILLED), f"the operation failed: {status}"
    return status == _KILLED


class _Countdown:
    def __init__(self, at: int) -> None:
        self._left = at
        self._mutex = threading.Lock()

    def step(self) -> None:
        with self._mutex:
            self._left -= 1
            if self._left == 0:
                os._exit(_KILLED)


def _prepare(countdown: _Countdown, *, native: bool) -> None:
    """In the child: count steps; one worker thread at a time, so that runs are alike."""
    os.cpu_count = lambda: 1
    for name in STEPS:
        setattr(os, name, _counted(countdown, getattr(os, name), creates=name == "open"))
    files._link_descriptor = _counted(countdown, files._link_descriptor)
    if not native:
        for module in (batch, shards, object_reader):
            module.NATIVE = False  # type: ignore[misc]
    elif batch.NATIVE:
        batch._store = _counted(countdown, batch._store)  # type: ignore[assignment]
        shards._core.remove_objects = _counted(countdown, shards._core.remove_objects)  # type: ignore[misc]


def _counted(countdown: _Countdown, function: Callable[..., Any], *, creates: bool = False) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        if not creates or args[1] & os.O_CREAT:
            countdown.step()
        return function(*args, **kwargs)

    return counted


def every_interruption(operation: Callable[[Path], object], base: Path, work: Path, **options: Any) -> Iterator[Path]:
    """Copies of *base* in which *operation* was stopped at a step; in *work*, used again by the next.

    Every day these are a third of the steps, and all of them when COMPOSEFS_ASYNC_STRESS=1 asks for it.
    """
    for at in range(1, _TOO_MANY, 1 if os.environ.get("COMPOSEFS_ASYNC_STRESS") == "1" else 3):
        path = copy(base, work)
        if not interrupt(partial(operation, path), at, **options):
            return
        yield path
    raise AssertionError("the operation does not come to an end")


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target, symlinks=True)
    return target


# -- what is there -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """What a repository holds.  Reading it fails if a reference leads to anything that is not whole."""

    names: dict[str, ObjectId]
    """References, by their path, and the objects that they lead to."""
    needed: frozenset[str]
    """Paths below ``objects/`` of all that these need."""
    objects: frozenset[str]
    """And of all there is."""

    @classmethod
    def read(cls, path: Path) -> Contents:
        names: dict[str, ObjectId] = {}
        for reference in (each for refs in ("streams/refs", "images/refs") for each in (path / refs).rglob("*")):
            if reference.is_symlink():
                target = reference.resolve(strict=True).relative_to(path.resolve())
                names[str(reference.relative_to(path))] = ObjectId.from_path(str(target))
        needed = frozenset(each.path for each in reach(path, *names.values()))
        found = (path / "objects").glob("??/*")
        objects = frozenset(f"{each.parent.name}/{each.name}" for each in found)
        return cls(names, needed, objects)


def reach(path: Path, *tops: ObjectId) -> set[ObjectId]:
    """All objects that these need, each read and compared with its name.  Locks do not matter."""
    found: set[ObjectId] = set()
    pending = [*tops]
    while pending:
        object_id = pending.pop()
        if object_id in found:
            continue
        found.add(object_id)
        content, algorithm = (path / "objects" / object_id.path).read_bytes(), object_id.algorithm
        assert fsverity.digest(content, algorithm) == object_id
        if content.startswith(MAGIC):
            reader = SplitstreamReader(BytesSource(content), algorithm)
            pending += [*reader.object_refs, *reader.named_refs.values()]
        elif content[SUPERBLOCK_OFFSET:][:4] == EROFS_MAGIC.to_bytes(4, "little"):
            pending += image_object_ids(content, algorithm)
    return found


def problems(path: Path) -> list[str]:
    """What fsck finds, except for leftovers."""
    with Repository.open_path(path) as repo:
        return [finding.text for finding in repo.fsck().findings if finding.kind != "leftover"]


def leftovers(path: Path) -> list[str]:
    """Temporary names of interrupted operations, and leases."""
    found = [each for each in path.rglob("*") if each.name.startswith((".tmp-object-", ".symlink-"))]
    found += (path / ".composefs-async").glob("leases/*")
    return sorted(str(each.relative_to(path)) for each in found)


# -- images to work with -----------------------------------------------------------------------


LAYERS = {"shared": (10, 3000), "a": (5000,), "b": (200,), "c": (20, 3 << 20)}
"""Sizes of their files."""
IMAGES = {"a": ("shared", "a"), "b": ("shared", "b"), "c": ("c",)}


class Images:
    """Small images in one directory: ``a`` and ``b`` share a layer, ``c`` has a file that comes in several chunks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.exists():
            self._write()
        index = json.loads((directory / "index.json").read_bytes())
        self.digests = {each["annotations"][REF_NAME]: each["digest"] for each in index["manifests"]}

    @cached_property
    def tars(self) -> dict[str, bytes]:
        return {name: archive(name, *sizes) for name, sizes in LAYERS.items()}

    def _write(self) -> None:
        writer = OciLayoutWriter(self.directory)
        layers = {name: writer.add_layer(tar) for name, tar in self.tars.items()}
        for name, parts in IMAGES.items():
            writer.add_image([layers[each] for each in parts], tag=name, platform=PLATFORM)

    def pull(self, path: Path, name: str, tag: str | None = None) -> None:
        with Repository.open_path(path) as repo:
            self.pull_into(repo, name, tag)

    def pull_into(self, repo: Repository, name: str, tag: str | None = None) -> None:
        anyio.run(partial(pull, repo, f"oci:{self.directory}:{name}", tag=tag or name, platform=PLATFORM))

    def diff_id(self, layer: str) -> str:
        return f"sha256:{hashlib.sha256(self.tars[layer]).hexdigest()}"


def archive(seed: str, *sizes: int) -> bytes:
    """A tar with all parent directories: composefs-rs refuses layers without."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name in ("usr", "usr/lib"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            made.addfile(directory)
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"usr/lib/{seed}{number}")
            info.size = size
            made.addfile(info, io.BytesIO(random.Random(f"{seed}{number}").randbytes(size)))
    return out.getvalue()


def make(path: Path, algorithm: Algorithm = Algorithm.SHA256) -> Path:
    """An empty repository."""
    Repository.init(path, algorithm=algorithm, insecure=True).close()
    return path
