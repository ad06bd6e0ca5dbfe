"""Every operation stopped before each of its steps: nothing that had a name is lost, and all goes on as if nothing was.

`crashing` says what a step is.  After each interruption every reference leads to something whole, the check of the
repository finds nothing but leftovers, the same operation done again ends as if it had never been stopped, and garbage
collection then leaves exactly what is needed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async._maintenance import leases
from composefs_async.erofs.writer import build_image
from composefs_async.errors import StreamNotFoundError
from composefs_async.naming import manifest_stream, tag_reference
from composefs_async.oci import catalogue, pull
from composefs_async.oci.erofs_images import ensure_images
from composefs_async.oci.importing.layers import import_layer
from composefs_async.repository import Repository, state_of
from composefs_async.tree.dumpfile import parse_dump

from ..maintenance.crashing import PLATFORM, Contents, Images, copy, every_interruption, leftovers, make, problems

pytestmark = pytest.mark.usefixtures("without_flushes")

MANIFEST = f"sha256:{64 * '0'}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images") / "oci")


@dataclass(frozen=True)
class Case:
    """An operation, and the repository that it works on."""

    work: Callable[[Images, Path], object]
    prepare: Callable[[Images, Path], object] = lambda images, path: None
    leases: bool = False
    """What an interruption leaves is not garbage: a lease keeps it."""


def opened(work: Callable[[Repository], object]) -> Callable[[Images, Path], object]:
    def run(images: Images, path: Path) -> object:
        with Repository.open_path(path) as repo:
            return work(repo)

    return run


def pulled(*names: str) -> Callable[[Images, Path], object]:
    """Images, each under its own name or, as in ``a:tag``, under another."""

    def run(images: Images, path: Path) -> None:
        for name in names:
            image, _, tag = name.partition(":")
            images.pull(path, image, tag or None)

    return run


def both(*works: Callable[[Images, Path], object]) -> Callable[[Images, Path], object]:
    def run(images: Images, path: Path) -> None:
        for work in works:
            work(images, path)

    return run


def layer(images: Images, path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield images.tars["c"]

    async def run() -> None:
        async with Repository.open_path(path) as repo:
            await import_layer(repo, images.diff_id("c"), pieces(), reference="my/layer")

    anyio.run(run)


@opened
def stream(repo: Repository) -> None:
    writer = repo.create_stream(0)
    writer.write_reference(repo.ensure_object(bytes(1000)).id)
    writer.add_external_size(1000)
    repo.write_stream(writer, "mine", "some/where")


@opened
def image(repo: Repository) -> None:
    file = repo.ensure_object(bytes(1000)).id
    lines = ("/ 0 40755 2 0 0 0 0.0 - - -", f"/f 1000 100644 1 0 0 0 0.0 {file.path} - {file.hex()}")
    repo.write_image(build_image(parse_dump("\n".join(lines).encode()), repo.algorithm, 1), "an/image")


@opened
def garbage(repo: Repository) -> None:
    """Of every kind: objects, streams and images without a reference, links that lead nowhere, leftovers."""
    catalogue.untag(repo, "a")
    lost = repo.ensure_object(b"lost" * 1000).id
    repo.register_stream(lost, "lost")
    os.unlink(f"{repo.path}/objects/{lost.path}")
    os.symlink("nowhere", f"{repo.path}/.symlink-1234")
    Path(repo.path, "objects", ".tmp-object-1234").touch()


@opened
def lease(repo: Repository) -> None:
    leases.begin(state_of(repo), MANIFEST, "somewhere").finished(MANIFEST, repo.ensure_object(b"leased").id)


def without_images(images: Images, path: Path) -> None:
    with Repository.open_path(path) as repo:
        reference = f"oci:{images.directory}:a"
        anyio.run(partial(pull, repo, reference, tag="a", platform=PLATFORM, make_images=False))


def move_tag(images: Images, path: Path) -> None:
    with Repository.open_path(path) as repo:
        catalogue.tag(repo, images.digests["b"], "a")


@opened
def untag(repo: Repository) -> None:
    with suppress(StreamNotFoundError):
        catalogue.untag(repo, "a")


def referrers(images: Images, path: Path) -> None:
    """An image is recorded as referring to another, and to two that are gone."""
    for subject in (images.digests["a"], MANIFEST, MANIFEST.replace("0", "1")):
        directory = path / "streams/refs/oci-referrers" / subject
        directory.mkdir(parents=True)
        (directory / images.digests["b"]).symlink_to(f"../../../{manifest_stream(images.digests['b'])}")


@opened
def prune(repo: Repository) -> None:
    repo.prune_references(dangling=True)


def rename(*, replace: bool) -> Callable[[Images, Path], object]:
    @opened
    def run(repo: Repository) -> None:
        with suppress(StreamNotFoundError):
            repo.rename_reference("streams", tag_reference("a"), tag_reference("b"), replace=replace)

    return run


CASES = {
    "layer": Case(layer),
    "layer that is there": Case(layer, prepare=pulled("c")),
    "stream": Case(stream),
    "image": Case(image),
    "pull": Case(pulled("a"), leases=True),
    "pull of a large file": Case(pulled("c"), leases=True),
    "pull with a layer that is there": Case(pulled("b"), prepare=pulled("a"), leases=True),
    "pull of what is there": Case(pulled("a:b"), prepare=pulled("a"), leases=True),
    "pull in the place of another": Case(pulled("b:a"), prepare=pulled("a")),
    "EROFS images": Case(opened(lambda repo: ensure_images(repo, "a")), prepare=without_images),
    "tag moved": Case(move_tag, prepare=pulled("a", "b")),
    "untag": Case(untag, prepare=pulled("a", "b")),
    "gc": Case(opened(Repository.gc), prepare=both(pulled("a", "c"), garbage)),
    "gc of everything": Case(opened(Repository.gc), prepare=both(pulled("a"), garbage)),
    "rename": Case(rename(replace=False), prepare=pulled("a")),
    "rename in the place of another": Case(rename(replace=True), prepare=pulled("a", "b")),
    "prune of references": Case(prune, prepare=both(pulled("a", "b"), referrers)),
    "lease": Case(lease, prepare=pulled("a"), leases=True),
    "drop of a lease": Case(opened(lambda repo: repo.drop_lease(MANIFEST)), prepare=both(pulled("a"), lease)),
}
NATIVE = ("layer", "pull", "gc")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_interruption_loses_nothing(images: Images, tmp_path: Path, case: Case) -> None:
    check(images, tmp_path, case, native=False)


@pytest.mark.parametrize("case", [CASES[name] for name in NATIVE], ids=NATIVE)
def test_an_interruption_between_native_batches_loses_nothing(images: Images, tmp_path: Path, case: Case) -> None:
    check(images, tmp_path, case, native=True)


def test_an_interrupted_prune_is_done_by_the_next(images: Images, tmp_path: Path) -> None:
    """Down to directories that are empty; and of what leads nowhere some is left, but nothing else is gone."""
    base, refs = make(tmp_path / "base"), "streams/refs"
    pulled("a", "b")(images, base)
    referrers(images, base)
    for name in ("one", "two"):
        (base / refs / name).symlink_to("../gone")
    (base / refs / "oci-referrers" / MANIFEST.replace("0", "2")).mkdir()
    before = entries(base / refs)
    prune(images, copy(base, tmp_path / "work"))
    after = entries(tmp_path / "work" / refs)
    kept = f"oci-referrers/{images.digests['a']}"
    assert after == {"oci", "oci/a", "oci/b", "oci-referrers", kept, f"{kept}/{images.digests['b']}"}
    count = 0
    for path in every_interruption(partial(prune, images), base, tmp_path / "work"):
        count += 1
        assert after <= entries(path / refs) <= before
        prune(images, path)
        assert entries(path / refs) == after
    assert count > 2


def entries(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def check(images: Images, tmp_path: Path, case: Case, *, native: bool) -> None:
    base, work = make(tmp_path / "base"), tmp_path / "work"
    case.prepare(images, base)
    before, wrong = Contents.read(base), problems(base)
    case.work(images, copy(base, work))
    after = Contents.read(work)
    clean = collect(work)
    assert clean.names == after.names
    count = 0
    for path in every_interruption(partial(case.work, images), base, work, native=native):
        count += 1
        found = Contents.read(path)
        is_between(found, before, after)
        # A name that only gc would remove, and that leads nowhere, is all that may be wrong from the start.
        assert [each for each in problems(path) if each not in wrong] == []
        if count % 2:  # what an interruption has left is collected before the operation is done again, or after that
            kept = collect(path, leases=case.leases)
            assert kept == (found if case.leases else replace(found, objects=found.needed))
        case.work(images, path)
        assert Contents.read(path).names == after.names
        assert (collect(path), leftovers(path)) == (clean, [])
    assert count


def is_between(found: Contents, before: Contents, after: Contents) -> None:
    """Each name is as it was before an operation, or as it is after it, and nothing that both have is missing."""
    old, new = before.names, after.names
    assert found.names.items() <= old.items() | new.items()
    assert found.names.keys() >= old.keys() & new.keys()
    assert {*found.names.values()} >= {*old.values()} & {*new.values()}


def collect(path: Path, *, leases: bool = False) -> Contents:
    """Collect garbage, which a dry run has foretold; what is left.

    Args:
        leases: they are kept, otherwise dropped.
    """
    with Repository.open_path(path) as repo:
        for each in [] if leases else repo.leases():
            repo.drop_lease(each.manifest_digest)
        foretold = repo.gc(dry_run=True)
        assert repo.gc() == foretold
    return Contents.read(path)
