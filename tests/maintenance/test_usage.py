"""What names cost, compared with counting by hand for each name and each set of names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async._maintenance import leases, reachability, state_dir
from composefs_async._maintenance.gc.collect import gc
from composefs_async.errors import ReachUnknownError
from composefs_async.oci import Platform, pull
from composefs_async.oci.catalogue import open_image, tag
from composefs_async.repository import Repository, state_of
from composefs_async.results import NameUsage, Space, Usage
from composefs_async.splitstream import SplitstreamWriter

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    """Two images that share a layer's file, an artifact, an image with a name of its own, and garbage."""
    with Repository.init(tmp_path / "repo", insecure=True) as repository:
        for case in ("basic", "one", "artifact"):
            reference = f"oci:{LAYOUTS}/{case}"
            anyio.run(partial(pull, repository, reference, tag=case, platform=Platform("linux", "amd64")))
        image_id = open_image(repository, "one").image(1)
        assert image_id is not None
        repository.write_image(repository.read_object(image_id), "an/image")
        repository.ensure_object(b"garbage" * 1000)
        yield repository


def reached(repo: Repository, path: str) -> set[str]:
    """The paths of all objects that the reference *path* keeps."""
    roots = reachability.roots(state_of(repo))
    (object_id,) = (each.object_id for each in roots.references if each.path == path)
    assert object_id is not None
    found = set()
    width = repo.algorithm.digest_size
    for node_id, node in reachability.walk(state_of(repo), [object_id]).nodes.items():
        found.add(node_id.path)
        hexadecimal = node.objects.hex(" ", width).split()
        found |= {f"{digits[:2]}/{digits[2:]}" for digits in hexadecimal}
    return found


def space(repo: Repository, paths: set[str]) -> Space:
    stats = [os.stat(os.path.join(repo.path, "objects", path)) for path in paths]
    return Space(len(stats), sum(each.st_size for each in stats), sum(each.st_blocks * 512 for each in stats))


def path_of(each: NameUsage) -> str:
    return f"{each.category}/refs/{each.reference}"


def objects(repo: Repository) -> set[str]:
    top = Path(repo.path) / "objects"
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}


def check(repo: Repository, usage: Usage) -> None:
    """Every figure against sets made by hand."""
    kept = {path_of(each): reached(repo, path_of(each)) for each in usage.names}
    for each in usage.names:
        own = kept[path_of(each)]
        same = {path_of(other) for other in usage.names if other.name == each.name}
        elsewhere = set[str]().union(*(kept[path] for path in kept if path not in same))
        others = set[str]().union(*(kept[path] for path in kept if path != path_of(each)))
        assert each.exclusive == space(repo, own - elsewhere), each
        assert each.shared == space(repo, own & elsewhere), each
        assert each.frees == space(repo, own - others), each
    everything = objects(repo)
    assert usage.objects == space(repo, everything)
    assert usage.garbage == space(repo, everything - set[str]().union(*kept.values()))


def test_each_name_is_told_what_it_keeps_alone_and_with_others(repo: Repository) -> None:
    usage = repo.usage()
    assert [path_of(each) for each in usage.names] == [
        "images/refs/an/image",
        "streams/refs/oci/artifact",
        "streams/refs/oci/basic",
        "streams/refs/oci/one",
    ]
    check(repo, usage)
    by_reference = {each.reference: each for each in usage.names}
    assert by_reference["oci/one"].shared.objects > by_reference["oci/basic"].shared.objects > 0
    assert by_reference["oci/one"].frees.objects > 0
    assert by_reference["an/image"].frees == Space()
    assert usage.garbage.objects == 1
    assert usage.garbage.size == 7000


def test_two_tags_of_one_image_share_nothing_and_free_nothing(repo: Repository) -> None:
    alone = {each.reference: each for each in repo.usage().names}["oci/basic"]
    tag(repo, open_image(repo, "basic").manifest.digest, "again")
    usage = repo.usage()
    check(repo, usage)
    both = [each for each in usage.names if each.name == alone.name]
    assert [each.reference for each in both] == ["oci/again", "oci/basic"]
    assert [(each.exclusive, each.shared, each.frees) for each in both] == [
        (alone.exclusive, alone.shared, Space())
    ] * 2


def test_removing_a_name_makes_what_it_frees_garbage(repo: Repository) -> None:
    for each in repo.usage().names:
        before = repo.usage()
        expected = {other.reference: other for other in before.names}[each.reference].frees
        (Path(repo.path) / path_of(each)).unlink()
        garbage = repo.usage().garbage
        assert garbage.objects - before.garbage.objects == expected.objects
        assert garbage.size - before.garbage.size == expected.size
    assert repo.usage().garbage == repo.usage().objects


def would_delete(repo: Repository) -> tuple[int, int]:
    result = gc(state_of(repo), dry_run=True)
    return result.objects_removed, result.objects_bytes


@pytest.mark.parametrize("leased", [False, True], ids=["without lease", "with lease"])
def test_what_a_name_frees_is_what_gc_deletes_without_it(repo: Repository, leased: bool) -> None:
    """With a lease gc keeps what is younger than it, and the layers that it speaks of."""
    if leased:
        newest = max((Path(repo.path) / "objects" / path).stat().st_ctime_ns for path in objects(repo))
        while state_dir.timestamp(state_of(repo)) <= newest:  # the clock of files has few ticks
            pass
        layer_id = open_image(repo, "basic").layers.popitem()[1]
        leases.begin(state_of(repo), "sha256:" + "1" * 64, "an image").finished("sha256:" + "2" * 64, layer_id)
        repo.ensure_object(b"young" * 300)
    usage = repo.usage()
    assert would_delete(repo) == (usage.garbage.objects, usage.garbage.size)
    assert (usage.leased.objects, usage.leased.size) == ((1, 1500) if leased else (0, 0))
    for each in usage.names:
        link = Path(repo.path) / path_of(each)
        target = link.readlink()
        link.unlink()
        frees = each.frees
        assert would_delete(repo) == (usage.garbage.objects + frees.objects, usage.garbage.size + frees.size)
        link.symlink_to(target)


def test_an_object_that_a_stream_lists_twice_counts_once(tmp_path: Path) -> None:
    with Repository.init(tmp_path / "new", insecure=True) as repo:
        stored = repo.ensure_object(b"x" * 5000)
        for name in ("a", "b"):
            writer = SplitstreamWriter(repo.algorithm, 1)
            writer.write_inline(name.encode())
            for _ in range(3):
                writer.write_reference(stored.id)
            repo.write_stream(writer, name, f"{name}/ref")
        usage = repo.usage()
        check(repo, usage)
        assert [each.shared.size for each in usage.names] == [5000, 5000]


def test_temporary_files_and_quarantine_are_told_apart(repo: Repository) -> None:
    before = repo.usage()
    shard = next((Path(repo.path) / "objects").iterdir())
    (shard / ".tmp-object-abc").write_bytes(bytes(1234))
    (shard / ("z" * (2 * repo.algorithm.digest_size - 2))).write_bytes(bytes(1000))
    aside = Path(repo.path) / ".composefs-async" / "quarantine" / "then" / "objects" / "00"
    aside.mkdir(parents=True)
    (aside / "11").write_bytes(bytes(77))
    after = repo.usage()
    assert (after.leftovers.objects, after.leftovers.size) == (2, 2234)
    assert (after.quarantine.objects, after.quarantine.size) == (1, 77)
    assert (after.names, after.objects, after.garbage) == (before.names, before.objects, before.garbage)


def test_a_reference_that_leads_nowhere_is_left_out(repo: Repository) -> None:
    before = repo.usage()
    os.symlink("../nothing", Path(repo.path) / "streams" / "refs" / "dangling")
    assert repo.usage() == before


def test_an_empty_repository_has_nothing(tmp_path: Path) -> None:
    with Repository.init(tmp_path / "new", insecure=True) as repo:
        assert repo.usage() == Usage((), Space(), Space(), Space(), Space(), Space())


def test_damage_that_hides_what_is_needed_is_an_error(repo: Repository) -> None:
    manifest_id = open_image(repo, "basic").manifest_id
    (Path(repo.path) / "objects" / manifest_id.path).write_bytes(b"no stream")
    with pytest.raises(ReachUnknownError, match=manifest_id.path):
        repo.usage()


@pytest.mark.anyio
async def test_the_async_form_gives_the_same(repo: Repository) -> None:
    assert await repo.usage_async() == repo.usage()
