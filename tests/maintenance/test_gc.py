"""Garbage collection: what stays, what goes, in which order, and what a stop at any point leaves."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async._maintenance import reachability
from composefs_async._maintenance.gc import collect, shards
from composefs_async._sys import files, locks
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import ReachUnknownError, ReadOnlyRepositoryError
from composefs_async.repository import Repository, state_of
from composefs_async.results import GcResult

from ..maintenance.garbage import everything, image, links, objects, store, stream
from ..maintenance.machine import Machine


def remove(repo: Repository, *names: str) -> None:
    for name in names:
        os.unlink(Path(repo.path, name))


def damage(repo: Repository, object_id: ObjectId) -> None:
    path = Path(repo.path, "objects", object_id.path)
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


def fill(repo: Repository) -> set[str]:
    """An image with a tag, an image with a name, and garbage of every kind; the objects that must stay."""
    layer = stream(repo, "layer", ["layer file", "shared file"])
    tagged = image(repo, ["image file", "shared file"])
    config = stream(repo, "config", ["config file"], named={"layer": layer, "composefs.image": tagged})
    manifest = stream(repo, "manifest", named={"config": config, "layer": layer}, reference="oci/tag")
    named = image(repo, ["named file"], "a/name")
    stream(repo, "dead", ["dead file", "shared file"])
    image(repo, ["dead image file"])
    store(repo, "never named", "nor this")
    nodes = {object_id.hex() for object_id in (layer, tagged, config, manifest, named)}
    return {"layer file", "shared file", "image file", "config file", "named file"} | nodes


# -- what stays --------------------------------------------------------------------------------


def test_only_what_names_need_stays(empty: Repository) -> None:
    keep, before = fill(empty), objects(empty)
    expected = empty.gc(dry_run=True)
    assert objects(empty) == before
    result = empty.gc()
    assert objects(empty) == keep
    gone = before - keep
    sizes = sum(1000 for each in gone if " " in each)
    assert (result.objects_removed, result.images_pruned, result.streams_pruned) == (len(gone), 1, 1)
    assert result.objects_bytes > sizes
    assert [name.partition("/")[0] for name in result.pruned] == ["images", "streams"]
    assert result.pruned[1] == "streams/dead"
    assert (result.leftovers, result.objects_leased, result.objects_missing, result.notes) == ((), 0, 0, ())
    assert expected == result
    assert empty.gc() == GcResult()


def test_an_empty_repository_has_no_garbage(empty: Repository) -> None:
    assert empty.gc() == GcResult()


@pytest.mark.parametrize(
    "gone",
    [["streams/layer"], ["streams/config"], ["streams/layer", "streams/config"]],
    ids="+".join,
)
def test_what_has_lost_its_name_is_kept_by_ids(empty: Repository, gone: list[str]) -> None:
    keep = fill(empty)
    remove(empty, *gone)
    empty.gc()
    assert objects(empty) == keep


def test_files_of_an_image_stay_without_layers_that_have_them(empty: Repository) -> None:
    picture = image(empty, ["only in the image"])
    config = stream(empty, "config", named={"composefs.image.v1": picture}, reference="r")
    remove(empty, f"images/{picture.hex()}")
    empty.gc()
    assert objects(empty) == {"only in the image", picture.hex(), config.hex()}


def test_additional_roots_are_first_level_names(empty: Repository) -> None:
    one = stream(empty, "one", ["a"])
    stream(empty, "two", ["b"])
    picture = image(empty, ["c"])
    empty.gc(["one", "refs/two", "sha256:two", picture.hex(), "unknown"])
    assert objects(empty) == {"a", "c", one.hex(), picture.hex()}


def test_names_are_kept_while_their_object_is(empty: Repository) -> None:
    layer = stream(empty, "layer", ["a"])
    stream(empty, "manifest", named={"layer": layer}, reference="r")
    assert empty.gc() == GcResult()
    assert links(empty) == {"streams/layer", "streams/manifest", "streams/refs/r"}


def test_a_name_whose_object_is_missing_goes_unless_a_reference_means_it(empty: Repository) -> None:
    ids = [stream(empty, name, [name], reference=ref) for name, ref in [("a", "r"), ("b", None), ("c", None)]]
    stream(empty, "d", named={"c": ids[2]}, reference="s")
    for object_id in ids:
        os.unlink(Path(empty.path, "objects", object_id.path))
    result = empty.gc()
    assert result.pruned == ("streams/b", "streams/c")
    assert links(empty) == {"streams/a", "streams/d", "streams/refs/r", "streams/refs/s"}
    assert [note.object_id for note in result.notes] == sorted((ids[0], ids[2]))
    assert result.objects_missing == 2


def test_missing_files_of_what_stays_are_counted(empty: Repository) -> None:
    stream(empty, "a", ["x", "y", "z"], reference="r")
    for object_id in store(empty, "x", "y"):
        os.unlink(Path(empty.path, "objects", object_id.path))
    assert empty.gc() == GcResult(objects_missing=2)


def test_a_reference_of_january_keeps_its_config(empty: Repository) -> None:
    digest = f"sha256:{'ab' * 32}"
    config = stream(empty, f"oci-config-{digest}", ["a"])
    os.mkdir(Path(empty.path, "streams/refs"))
    os.symlink(f"../{digest}", Path(empty.path, "streams/refs/old"))
    assert empty.gc() == GcResult()
    assert objects(empty) == {"a", config.hex()}


# -- what is strange ---------------------------------------------------------------------------


def test_what_is_strange_is_noted_and_left_alone(empty: Repository) -> None:
    keep = fill(empty)
    root = Path(empty.path)
    shard = next((root / "objects").iterdir())
    digits = 2 * empty.algorithm.digest_size - 2
    (shard / "stray").write_text("x")
    (shard / ("A" * digits)).write_text("x")
    (shard / ("f" * digits)).mkdir()
    (root / "objects/README").write_text("x")
    (root / "streams/stray").write_text("x")
    os.symlink("../gone", root / "streams/refs/dangling")
    os.symlink("../meta.json", root / "images/elsewhere")
    name = shard.name
    result = empty.gc()
    assert [(note.kind, note.path) for note in result.notes] == [
        ("link-target-invalid", "images/elsewhere"),
        ("entry-not-symlink", "streams/stray"),
        ("broken-symlink", "streams/refs/dangling"),
        ("stray-entry", "objects/README"),
        ("object-invalid-name", f"objects/{name}/{'A' * digits}"),
        ("object-invalid-name", f"objects/{name}/{'f' * digits}"),
        ("object-invalid-name", f"objects/{name}/stray"),
    ]
    for path in (shard / "stray", shard / ("A" * digits)):
        path.unlink()
    (shard / ("f" * digits)).rmdir()
    assert objects(empty) == keep
    assert links(empty) >= {"streams/refs/dangling", "images/elsewhere"}


@pytest.mark.parametrize("target", ["nothing", "name", "../meta.json/x", f"../objects/aa/{'b' * 126}"])
def test_a_name_that_leads_nowhere_goes_unless_a_reference_means_it(target: str, empty: Repository) -> None:
    stream(empty, "kept", reference="r")
    if empty.algorithm is Algorithm.SHA512:
        target = target.removesuffix("b" * 64)
    for name in ("name", "meant"):
        os.symlink(target if target != "name" else name, Path(empty.path, "streams", name))
    os.symlink("../meant", Path(empty.path, "streams/refs/s"))
    foretold = empty.gc(dry_run=True)
    result = empty.gc()
    assert result == foretold
    assert (result.pruned, result.streams_pruned) == (("streams/name",), 1)
    assert [(note.kind, note.path) for note in result.notes] == [
        ("link-target-invalid", "streams/meant"),
        ("broken-symlink", "streams/refs/s"),
    ]
    assert links(empty) == {"streams/kept", "streams/meant", "streams/refs/r", "streams/refs/s"}


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_a_name_of_what_is_no_file_goes_and_that_stays(kind: str, empty: Repository) -> None:
    path = Path(empty.path, "objects", stream(empty, "name").path)
    path.unlink()
    path.symlink_to("nothing") if kind == "link" else path.mkdir()
    foretold = empty.gc(dry_run=True)
    result = empty.gc()
    assert result == foretold
    assert result.pruned == ("streams/name",)
    assert [(note.kind, note.path) for note in result.notes] == [
        ("object-invalid-name", str(path.relative_to(empty.path)))
    ]
    assert os.path.lexists(path)


def test_leftovers_go_and_are_told(empty: Repository) -> None:
    keep = fill(empty)
    root = Path(empty.path)
    shard = next((root / "objects").iterdir()).name
    os.symlink("../objects/nothing", root / ".symlink-0123456789ab")
    temporary = [".tmp-object-1", f"objects/{shard}/.tmp-object-2", "objects/.tmp-object-3"]
    for name in temporary:
        (root / name).write_text("x")
    (root / ".symlink-file").write_text("no link")
    assert empty.gc(dry_run=True).leftovers == tuple(sorted([".symlink-0123456789ab", *temporary]))
    result = empty.gc()
    assert result.leftovers == tuple(sorted([".symlink-0123456789ab", *temporary]))
    assert objects(empty) == keep
    assert sorted(name for name in os.listdir(root) if name.startswith(".") and name != ".composefs-async") == [
        ".symlink-file"
    ]


@pytest.mark.parametrize("kind", ["stream", "image"])
def test_nothing_is_removed_when_something_that_is_needed_is_damaged(empty: Repository, kind: str) -> None:
    fill(empty)
    damage(empty, stream(empty, "x", ["x"], reference="x") if kind == "stream" else image(empty, ["x"], "x"))
    before = everything(empty)
    with pytest.raises(ReachUnknownError):
        empty.gc()
    assert everything(empty) == before


def test_nothing_is_removed_when_something_that_is_needed_cannot_be_read(
    empty: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(empty)
    object_id = stream(empty, "x", ["x"], reference="x")
    Machine(monkeypatch).spoil(Path(empty.path, "objects", object_id.path))
    before = everything(empty)
    with pytest.raises(OSError, match="could not be read: Input/output error") as caught:
        empty.gc()
    assert caught.value.filename == os.path.join(empty.path, "objects", object_id.path)
    assert everything(empty) == before


def test_damage_that_nothing_needs_is_removed(empty: Repository) -> None:
    keep = fill(empty)
    damage(empty, stream(empty, "x", ["x"]))
    empty.gc()
    assert objects(empty) == keep


def test_a_damaged_cache_costs_nothing_but_time(empty: Repository) -> None:
    keep = fill(empty)
    empty.gc(dry_run=True)
    path = Path(empty.path, ".composefs-async/reach")
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    empty.gc()
    assert objects(empty) == keep


def test_a_repository_that_must_not_be_written_can_be_looked_at(empty: Repository) -> None:
    fill(empty)
    meta = Path(empty.path, "meta.json")
    values = json.loads(meta.read_text())
    values["features"] = {"read-only-compatible": ["from-the-future"]}
    meta.write_text(json.dumps(values))
    with Repository.open_path(empty.path) as repo:
        assert repo.gc(dry_run=True).objects_removed > 0
        with pytest.raises(ReadOnlyRepositoryError):
            repo.gc()
    assert not Path(empty.path, ".composefs-async").exists()


def test_the_dry_run_writes_nothing_but_what_it_remembers(empty: Repository) -> None:
    fill(empty)
    before = everything(empty)
    empty.gc(dry_run=True)
    assert everything(empty) == before


# -- in which order ----------------------------------------------------------------------------


class Tracer:
    """Records, or stops at, each call with which gc changes anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.stop_at = 0
        """1 is before the first change, 2 after it, and so on; 0 lets all happen."""
        self._steps = 0
        self._patch(monkeypatch, os, "unlink", lambda path, **_: f"unlink {path}")
        self._patch(monkeypatch, files, "fsync_directory", lambda path, **_: f"fsync {path}")
        self._patch(monkeypatch, shards, "remove", lambda *_: "objects")
        monkeypatch.setattr(collect, "_BATCH", 1)
        monkeypatch.setattr(collect.shards, "WORKERS", 1)

    def restart(self, stop_at: int = 0) -> None:
        self.stop_at, self._steps = stop_at, 0
        self.events.clear()

    def _patch(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, describe: Callable[..., str]) -> None:
        real = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            self._step()
            result = real(*args, **options)
            self.events.append(describe(*args, **options))
            self._step()
            return result

        monkeypatch.setattr(module, name, call)

    def _step(self) -> None:
        self._steps += 1
        if self._steps == self.stop_at:
            raise Interrupted


class Interrupted(BaseException):
    pass


def test_names_are_durably_gone_before_any_object_goes(empty: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(empty)
    tracer = Tracer(monkeypatch)
    result = empty.gc()
    events = [event for event in tracer.events if event.startswith(("unlink streams", "unlink images", "fsync", "obj"))]
    assert sorted(events[:2]) == sorted(f"unlink {name}" for name in result.pruned)
    assert sorted(events[2:4]) == ["fsync images", "fsync streams"]
    assert events[4:] == ["objects"] * result.objects_removed


@pytest.mark.parametrize("empty", [Algorithm.SHA512], indirect=True, ids=["sha512"])
def test_wherever_it_stops_everything_is_whole_and_the_next_run_does_the_rest(
    empty: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = fill(empty)
    (Path(empty.path) / ".tmp-object-1").write_text("x")
    template = tmp_path / "template"
    shutil.copytree(empty.path, template, symlinks=True)
    tracer = Tracer(monkeypatch)
    empty.gc()
    final, stop_at, interrupted = everything(empty), 0, True
    while interrupted:
        stop_at += 1
        path = tmp_path / f"at{stop_at}"
        shutil.copytree(template, path, symlinks=True)
        with Repository.open_path(path) as repo:
            tracer.restart(stop_at)
            interrupted = was_interrupted(repo)
            tracer.restart()
            assert_whole(repo)
            with Repository.open_path(path, timeout=0):  # the lock is shared again
                pass
            repo.gc()
            assert objects(repo) == keep
            assert everything(repo) == final
        shutil.rmtree(path)
    assert stop_at > 20


def was_interrupted(repo: Repository) -> bool:
    try:
        repo.gc()
    except Interrupted:
        return True
    return False


def assert_whole(repo: Repository) -> None:
    """No name leads to anything that is not there, and nothing that a name leads to lacks anything."""
    state = state_of(repo)
    roots = reachability.roots(state)
    ids = {object_id for named in roots.links.values() for object_id in named.values()}
    reached = reachability.walk(state, ids)
    assert (roots.notes, reached.missing) == ((), set())
    width = repo.algorithm.digest_size
    needed = {ObjectId(piece) for node in reached.nodes.values() for piece in shards.pieces(node.objects, width)}
    assert [each for each in needed if not Path(repo.path, "objects", each.path).exists()] == []


# -- beside others -----------------------------------------------------------------------------


class Visitor:
    """Somebody who gets in between two slices of the sweep, through a handle of his own."""

    def __init__(self, repo: Repository, monkeypatch: pytest.MonkeyPatch, work: Callable[[Repository], None]) -> None:
        self._path, self._work = repo.path, work
        self.visits = 0
        monkeypatch.setattr(collect, "_BATCH", 1)
        monkeypatch.setattr(collect.shards, "WORKERS", 1)
        monkeypatch.setattr(collect, "_SLICE", 0)
        monkeypatch.setattr(collect.time, "sleep", self)

    def __call__(self, seconds: float) -> None:
        assert seconds >= 2 * locks.LOCK_POLL
        with Repository.open_path(self._path, timeout=0) as repo:  # the lock is really given up
            self.visits += 1
            if self.visits == 1:
                self._work(repo)


def test_what_is_named_between_slices_stays(empty: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = fill(empty)
    made: list[ObjectId] = []

    def work(repo: Repository) -> None:
        inner = stream(repo, "inner", ["dead file", "never named"])
        made.extend([inner, stream(repo, "outer", ["new"], named={"inner": inner}, reference="new")])

    visitor = Visitor(empty, monkeypatch, work)
    result = empty.gc()
    assert visitor.visits > result.objects_removed
    assert objects(empty) == keep | {"dead file", "never named", "new"} | {object_id.hex() for object_id in made}
    assert_whole(empty)


def test_what_comes_back_between_slices_stays_with_all_it_needs(
    empty: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = stream(empty, "layer", ["a", "b"])
    manifest = stream(empty, "manifest", named={"layer": layer}, reference="r")
    store(empty, "never named")
    path = Path(empty.path, "objects", layer.path)
    content = path.read_bytes()
    path.unlink()
    Visitor(empty, monkeypatch, lambda repo: repo.register_stream(repo.ensure_object(content).id, "layer"))
    empty.gc()
    # What it needs was garbage while it was not there, and some may have gone before it came back: not afterwards.
    assert {layer.hex(), manifest.hex()} <= objects(empty)
    assert os.readlink(Path(empty.path, "streams/layer")).endswith(layer.path)


def test_a_name_without_reference_does_not_keep_what_was_garbage(
    empty: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = stream(empty, "dead", ["a"])
    store(empty, "b", "c")
    Visitor(empty, monkeypatch, lambda repo: repo.register_stream(dead, "again"))
    empty.gc()
    assert_whole(empty)
    assert links(empty) == set()


def test_what_was_stored_after_the_look_is_not_touched(empty: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    store(empty, "a", "b")
    Visitor(empty, monkeypatch, lambda repo: store(repo, "late") and None)
    empty.gc()
    assert objects(empty) == {"late"}


def test_slices_end_in_time(empty: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    store(empty, *(f"garbage {number}" for number in range(50)))
    monkeypatch.setattr(collect, "_BATCH", 1)
    monkeypatch.setattr(collect.shards, "WORKERS", 1)
    now, pauses = 0.0, []

    def clock() -> float:
        nonlocal now
        now += 0.01
        return now

    monkeypatch.setattr(collect.time, "monotonic", clock)
    monkeypatch.setattr(collect.time, "sleep", pauses.append)
    assert empty.gc().objects_removed == 50
    assert 4 < len(pauses) < 50
    assert time.monotonic is clock
