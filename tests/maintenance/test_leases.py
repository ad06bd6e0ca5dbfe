"""Leases: what an interrupted pull has stored is there for the next one, and no longer than it should be."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async._maintenance import leases, reachability, state_dir
from composefs_async._maintenance.gc import shards
from composefs_async.digest import ObjectId
from composefs_async.errors import ReadOnlyRepositoryError
from composefs_async.oci import Platform, pull
from composefs_async.oci.importing.pull_result import PullResult
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.repository import Repository, state_of
from composefs_async.results import Lease

from ..maintenance.garbage import image, objects, store, stream

PLATFORM = Platform("linux", "amd64")
DIGEST = f"sha256:{'ab' * 32}"

# Pulls, and dies at the event with this name and number, as if it had been killed.
PROGRAM = """
import os, sys
from functools import partial
import anyio
from composefs_async import Repository
from composefs_async.oci import Platform, pull

def heard(event):
    global left
    if type(event).__name__ == sys.argv[3]:
        left -= 1
        if not left:
            os._exit(9)

left = int(sys.argv[4])
repo = Repository.open_path(sys.argv[1])
anyio.run(partial(pull, repo, sys.argv[2], tag="tag", platform=Platform("linux", "amd64"), progress=heard))
"""


def archive(seed: int, files: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for number in range(files):
            info = tarfile.TarInfo(f"layer{seed}-{number}")
            content = random.Random(1000 * seed + number).randbytes(50_000)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """An image of three layers, the last of which takes several chunks."""
    writer = OciLayoutWriter(tmp_path / "image")
    layers = [writer.add_layer(archive(seed, files), "none") for seed, files in ((1, 2), (2, 5), (3, 150))]
    writer.add_image(layers, platform=PLATFORM)
    return f"oci:{tmp_path}/image:latest"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty repository."""
    path = tmp_path / "repo"
    Repository.init(path, insecure=True).close()
    return path


def take(repo: Repository, reference: str) -> PullResult:
    return anyio.run(partial(pull, repo, reference, tag="tag", platform=PLATFORM))


def killed(place: Path, reference: str, event: str, number: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(place), reference, event, str(number)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 9


def files_of(repo: Repository, result: PullResult) -> set[ObjectId]:
    """What the layers' files are stored as."""
    nodes = [reachability.read_node(state_of(repo), layer.stream_id) for layer in result.layers]
    width = repo.algorithm.digest_size
    return {ObjectId(piece) for node in nodes for piece in shards.pieces(node.objects, width)}


def on_disk(repo: Repository) -> set[str]:
    return {path.parent.name + path.name for path in Path(repo.path, "objects").glob("??/*")}


@pytest.mark.parametrize(
    ("event", "number", "finished"),
    [
        ("ImportStarted", 1, 0),
        ("LayerStarted", 3, 0),
        ("ObjectsStored", 2, 0),
        ("LayerDone", 1, 0),
        ("LayerDone", 3, 0),  # it is heard of just before it is remembered
        ("ImageMade", 1, 3),
    ],
)
def test_a_killed_pull_is_gone_on_with(place: Path, reference: str, event: str, number: int, finished: int) -> None:
    killed(place, reference, event, number)
    with Repository.open_path(place) as repo:
        before = on_disk(repo)
        result = repo.gc()
        assert (result.objects_removed, on_disk(repo)) == (0, before)
        assert [len(lease.layers) >= finished for lease in repo.leases()] == [True] * (event != "ImportStarted")
        leased = {diff_id for lease in repo.leases() for diff_id in lease.layers}
        pulled = take(repo, reference)
        assert {layer.diff_id for layer in pulled.layers if layer.present} == leased
        fresh = {each.hex() for each in files_of(repo, pulled)} - before
        assert pulled.stats.objects_stored == len(fresh)
        assert repo.leases() == []
        assert not Path(place, ".composefs-async/leases").exists()
        kept = on_disk(repo)
        repo.gc()
        assert {each.hex() for each in files_of(repo, pulled)} <= on_disk(repo) <= kept


def test_what_was_there_and_a_finished_layer_needs_is_kept(place: Path, reference: str) -> None:
    """Though it is older than the lease."""
    with Repository.open_path(place) as repo:
        take(repo, reference)
        repo.unname_stream("oci/tag")
        removed = repo.gc(dry_run=True)
        for name in removed.pruned:
            os.unlink(place / name)
    killed(place, reference, "ImageMade", 1)
    with Repository.open_path(place) as repo:
        (lease,) = repo.leases()
        assert len(lease.layers) == 3
        repo.gc()
        pulled = take(repo, reference)
        assert {layer.diff_id for layer in pulled.layers if layer.present} == set(lease.layers)


def test_a_pull_that_succeeds_leaves_no_lease(place: Path, reference: str) -> None:
    with Repository.open_path(place) as repo:
        take(repo, reference)
    assert sorted(os.listdir(place)) == ["images", "meta.json", "objects", "streams"]


def test_a_leased_layer_that_lacks_something_is_read_again(place: Path, reference: str) -> None:
    killed(place, reference, "ImageMade", 1)
    with Repository.open_path(place) as repo:
        (lease,) = repo.leases()
        streams = list(lease.layers.values())
        lost = next(
            shards.pieces(reachability.read_node(state_of(repo), streams[0]).objects, repo.algorithm.digest_size)
        )
        os.unlink(place / "objects" / ObjectId(lost).path)
        damaged = place / "objects" / streams[1].path
        damaged.write_bytes(damaged.read_bytes()[:-1])
        pulled = take(repo, reference)
        present = {layer.stream_id for layer in pulled.layers if layer.present}
        assert present == set(streams[2:])
        assert pulled.stats.objects_stored == 1


# -- without a pull ----------------------------------------------------------------------------


def lease_file(repo: Repository) -> Path:
    return Path(repo.path, f".composefs-async/leases/{DIGEST}.json")


def rewrite(repo: Repository, **changes: object) -> None:
    values = json.loads(lease_file(repo).read_text())
    lease_file(repo).write_text(json.dumps({**values, **changes}))


def test_a_name_that_a_lease_keeps_keeps_what_it_needs(empty: Repository) -> None:
    """An import that stops between its names and its reference may have found objects that are garbage by then."""
    layer = stream(empty, "layer", ["file of the layer"])
    image(empty, ["file of an image"])
    (old,) = store(empty, "old garbage")
    stored = Path(empty.path, "objects", old.path).stat().st_ctime_ns
    while state_dir.timestamp(state_of(empty)) <= stored:
        pass
    leases.begin(state_of(empty), DIGEST, "oci:somewhere")
    stream(empty, "config", ["file of the layer"], named={"layer": layer})
    image(empty, ["file of an image", "old garbage"])
    expected = empty.gc(dry_run=True)
    assert expected == replace(empty.gc(), notes=expected.notes)
    assert (expected.objects_removed, expected.images_pruned, expected.streams_pruned) == (1, 1, 0)
    assert [each.text for each in empty.fsck().errors] == []
    assert objects(empty) >= {"file of the layer", "file of an image", "old garbage", layer.hex()}
    empty.drop_lease(DIGEST)
    empty.gc()
    assert objects(empty) == set()


def test_a_lease_keeps_what_is_younger_and_what_finished_layers_need(empty: Repository) -> None:
    layer = stream(empty, "layer", ["file of the layer"])
    os.unlink(Path(empty.path, "streams/layer"))
    (old,) = store(empty, "old garbage")
    stored = Path(empty.path, "objects", old.path).stat().st_ctime_ns
    while state_dir.timestamp(state_of(empty)) <= stored:  # the clock of files goes in steps
        pass
    holder = leases.begin(state_of(empty), DIGEST, "oci:somewhere")
    store(empty, "young")
    holder.finished("sha256:layer", layer)
    assert [(each.manifest_digest, each.reference, each.layers) for each in empty.leases()] == [
        (DIGEST, "oci:somewhere", {"sha256:layer": layer})
    ]
    result = empty.gc()
    assert (result.objects_removed, result.objects_leased) == (1, 1)
    assert objects(empty) == {"young", "file of the layer", layer.hex()}
    assert empty.drop_lease(DIGEST)
    assert not empty.drop_lease(DIGEST)
    assert empty.gc().objects_removed == 3
    assert objects(empty) == set()


def test_a_lease_ends_with_its_time(empty: Repository) -> None:
    leases.begin(state_of(empty), DIGEST, "r")
    store(empty, "young")
    rewrite(empty, expires=0)
    assert empty.leases() == []
    assert empty.gc().objects_removed == 1
    assert not lease_file(empty).exists()


def test_a_lease_lasts_as_long_as_it_was_told(empty: Repository) -> None:
    leases.begin(state_of(empty), DIGEST, "r", duration=0)
    assert empty.leases() == []


def test_after_a_crash_of_the_machine_only_objects_are_kept(empty: Repository) -> None:
    holder = leases.begin(state_of(empty), DIGEST, "r")
    layer = stream(empty, "layer", ["a"])
    holder.finished("sha256:layer", layer)
    os.unlink(Path(empty.path, "streams/layer"))
    rewrite(empty, boot="another")
    assert [each.layers for each in empty.leases()] == [{}]
    assert empty.gc().objects_leased == 2
    assert leases.begin(state_of(empty), DIGEST, "r").find("sha256:layer") is None


def test_a_second_try_keeps_the_first_one_s_start_and_layers(empty: Repository) -> None:
    layer = stream(empty, "layer", ["a"])
    leases.begin(state_of(empty), DIGEST, "r").finished("sha256:layer", layer)
    (first,) = empty.leases()
    again = leases.begin(state_of(empty), DIGEST, "r")
    assert again.find("sha256:layer") == layer
    (second,) = empty.leases()
    assert (second.started, second.layers) == (first.started, first.layers)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"[" * 5000, b'{"version": 1}', b'{"version": 2, "manifest": "%s"}' % DIGEST.encode()],
)
def test_a_lease_that_cannot_be_understood_is_none(empty: Repository, content: bytes) -> None:
    leases.begin(state_of(empty), DIGEST, "r")
    lease_file(empty).write_bytes(content)
    assert empty.leases() == []
    assert leases.begin(state_of(empty), DIGEST, "r").find("x") is None
    assert len(empty.leases()) == 1


def test_leased_layers_that_are_gone_or_damaged_do_not_hold_up_gc(empty: Repository) -> None:
    stream(empty, "kept", ["kept"], reference="r")
    damaged, gone = stream(empty, "damaged", ["a"]), stream(empty, "gone", ["b"])
    holder = leases.begin(state_of(empty), DIGEST, "r")
    holder.finished("sha256:damaged", damaged)
    holder.finished("sha256:gone", gone)
    os.unlink(Path(empty.path, "objects", gone.path))
    path = Path(empty.path, "objects", damaged.path)
    path.write_bytes(bytes(len(path.read_bytes())))
    empty.gc()
    assert "kept" in objects(empty)
    assert holder.find("sha256:damaged") is None
    assert holder.find("sha256:gone") is None


def test_the_directories_may_be_taken_away_at_any_time(empty: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the end of another pull, between two steps of writing."""
    real = state_dir._make_directories
    removals = 3

    def make_and_lose(*arguments: object) -> None:
        nonlocal removals
        real(*arguments)  # type: ignore[arg-type]
        if removals:
            removals -= 1
            for path in sorted(Path(empty.path, ".composefs-async").glob("**"), reverse=True):
                path.rmdir()

    monkeypatch.setattr(state_dir, "_make_directories", make_and_lose)
    leases.begin(state_of(empty), DIGEST, "r")
    assert [type(lease) for lease in empty.leases()] == [Lease]
    assert removals == 0


def test_a_lease_that_cannot_be_written_is_named(empty: Repository) -> None:
    place = os.path.join(empty.path, ".composefs-async")
    os.symlink(".composefs-async", place)
    with pytest.raises(OSError, match="symbolic links") as caught:
        leases.begin(state_of(empty), DIGEST, "oci:x")
    assert str(caught.value.filename).startswith(place)


def test_lease_of_a_repository_that_must_not_be_written_stays(empty: Repository) -> None:
    leases.begin(state_of(empty), DIGEST, "reference")
    meta = Path(empty.path, "meta.json")
    values = json.loads(meta.read_text())
    values["features"] = {"read-only-compatible": ["from-the-future"]}
    meta.write_text(json.dumps(values))
    with Repository.open_path(empty.path) as repo:
        with pytest.raises(ReadOnlyRepositoryError):
            repo.drop_lease(DIGEST)
        assert [lease.manifest_digest for lease in repo.leases()] == [DIGEST]
