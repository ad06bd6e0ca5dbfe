"""Repair from repositories and directories, and of names; each damage made, each mended, nothing else touched."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async._maintenance.repair import apply as repairing
from composefs_async._maintenance.repair.damaged_graph import Damage
from composefs_async._sys import files
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import AlgorithmMismatchError, RepositoryNotFoundError
from composefs_async.oci.catalogue import open_image
from composefs_async.progress import Message, ProgressEvent
from composefs_async.repository import Repository, state_of
from composefs_async.results import FsckResult, RepairAction, RepairResult
from composefs_async.splitstream import OCI_MANIFEST, SplitstreamWriter

from ..maintenance.damaging import DAMAGES, content, copy, cut, flip, make, objects, remove
from ..maintenance.machine import Machine

TAGS = ("streams/refs/oci/artifact", "streams/refs/oci/basic", "streams/refs/oci/one")
SOURCES = {"repository": "", "directory": "objects"}
sources = pytest.mark.parametrize("below", SOURCES.values(), ids=SOURCES)
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return make(tmp_path_factory.mktemp("whole") / "repo")


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return copy(whole, tmp_path / "damaged")


def repair(path: Path, *sources: Path, **options: Any) -> RepairResult:
    with Repository.open_path(path) as repo:
        return repo.repair(sources, **options)


def actions(result: RepairResult) -> list[tuple[str, str]]:
    return sorted((each.path, each.action) for each in result.actions)


def image_id(path: Path) -> ObjectId:
    with Repository.open_path(path) as repo:
        found = open_image(repo, "basic").image(1)
    assert found is not None
    return found


# -- objects -----------------------------------------------------------------------------------


@sources
@damages
def test_every_object_comes_back(whole: Path, damaged: Path, damage: Callable[[Path], None], below: str) -> None:
    for name in objects(damaged):
        damage(damaged / name)
    result = repair(damaged, whole / below)
    assert (result.ok, result.unrepaired, result.problems) == (True, (), ())
    assert content(damaged) == content(whole)
    assert sorted(each.path for each in result.actions) == objects(whole)
    if damage is not DAMAGES["link"]:  # which is as good as nothing where it is seen as a reference only
        assert {each.action for each in result.actions} == {"restored" if damage is remove else "replaced"}
    assert {each.source for each in result.actions} == {str(whole / below)}
    assert result.affected_refs == result.recovered_refs == ("images/refs/an/image", *TAGS)
    assert result.after.findings == ()


@damages
def test_only_what_is_damaged_is_touched(whole: Path, damaged: Path, damage: Callable[[Path], None]) -> None:
    for name in objects(whole):
        copy(whole, damaged)
        others = {each: (damaged / each).stat().st_ino for each in objects(damaged) if each != name}
        links = {each: os.lstat(damaged / each).st_ino for each in content(damaged) if not each.startswith("objects/")}
        damage(damaged / name)
        result = repair(damaged, whole)
        assert result.ok
        assert [each.path for each in result.actions] == [name]
        assert content(damaged) == content(whole)
        assert {each: (damaged / each).stat().st_ino for each in others} == others
        assert {each: os.lstat(damaged / each).st_ino for each in links} == links


def test_what_is_replaced_is_kept_in_quarantine(whole: Path, damaged: Path) -> None:
    names = objects(damaged)[:4]
    for name, damage in zip(names, (flip, cut, DAMAGES["directory"], remove), strict=True):
        damage(damaged / name)
    before = content(damaged)
    result = repair(damaged, whole)
    assert result.quarantine.startswith(".composefs-async/quarantine/")
    kept = content(damaged / result.quarantine)
    assert kept == {name: before[name] for name in names[:2]} | {f"{names[2]}/file": b"in the way"}


def test_nothing_is_put_in_quarantine_when_nothing_was_there(whole: Path, damaged: Path) -> None:
    remove(damaged / objects(damaged)[0])
    result = repair(damaged, whole)
    assert (result.ok, result.quarantine) == (True, "")
    assert not (damaged / ".composefs-async" / "quarantine").exists()


def test_a_whole_repository_is_left_alone(whole: Path, damaged: Path) -> None:
    inodes = {each: os.lstat(damaged / each).st_ino for each in content(damaged)}
    result = repair(damaged, whole)
    assert (result.ok, result.actions, result.affected_refs, result.quarantine) == (True, (), (), "")
    assert {each: os.lstat(damaged / each).st_ino for each in content(damaged)} == inodes


def test_references_that_are_hurt_are_told_from_those_that_are_not(whole: Path, damaged: Path) -> None:
    with Repository.open_path(damaged) as repo:
        layers = open_image(repo, "basic").layers
        with repo.open_stream("", layers.popitem()[1]) as reader:
            victim = reader.object_refs[0]
    remove(damaged / "objects" / victim.path)
    result = repair(damaged)
    assert (result.affected_refs, result.recovered_refs) == (("streams/refs/oci/basic",), ())
    assert [each.path for each in result.unrepaired] != []
    assert all(victim.hex() in each.reason for each in result.unrepaired)
    result = repair(damaged, whole)
    assert result.affected_refs == result.recovered_refs == ("streams/refs/oci/basic",)


def test_what_a_missing_stream_needs_in_turn_is_brought_too(whole: Path, damaged: Path) -> None:
    """Without the streams nobody knows which objects are needed, and they are corrupt or missing as well."""
    shutil.rmtree(damaged / "objects")
    result = repair(damaged, whole)
    assert result.ok
    assert content(damaged) == content(whole)


def test_sources_are_tried_in_their_order(whole: Path, damaged: Path, tmp_path: Path) -> None:
    with Repository.open_path(damaged) as repo:
        names = sorted(f"objects/{each.path}" for each in repo.objects_for_image(image_id(whole).hex()))
    first, second = copy(whole, tmp_path / "first"), copy(whole, tmp_path / "second")
    for name in names:
        flip(damaged / name)
    for name in names[1::2]:
        remove(first / name)
    flip(first / names[0])  # a source that is corrupt itself
    result = repair(damaged, first, second)
    assert result.ok
    assert content(damaged) == content(whole)
    by_source = {each.path: each.source for each in result.actions}
    expected = {name: str(first if at % 2 == 0 and at else second) for at, name in enumerate(names)}
    assert by_source == expected


def test_blocks_that_cannot_be_read_stop_nothing(
    whole: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel has it where fs-verity finds damage; here, and in a source."""
    machine, first = Machine(monkeypatch), copy(whole, tmp_path / "first")
    names = objects(damaged)
    for name in names:
        machine.spoil(damaged / name)
    for name in names[::2]:
        machine.spoil(first / name)
    result = repair(damaged, first, whole)
    assert (result.ok, result.affected_refs) == (True, result.recovered_refs)
    assert content(damaged) == content(whole)
    by_path = {each.path: each.source for each in result.actions}
    assert by_path.keys() == {*names}
    assert {by_path[name] for name in names[::2]} == {str(whole)}
    assert {by_path[name] for name in names[1::2]} == {str(first), str(whole)}


def test_a_copy_that_cannot_be_written_is_an_error(whole: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(damaged / objects(damaged)[0])

    def full(source: int, target: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "copy_content", full)
    with pytest.raises(OSError, match="No space left"):
        repair(damaged, whole)


def test_a_corrupt_source_replaces_nothing(whole: Path, damaged: Path, tmp_path: Path) -> None:
    source = copy(whole, tmp_path / "source")
    for name in objects(whole):
        flip(damaged / name)
        cut(source / name)
    before = content(damaged)
    result = repair(damaged, source)
    assert (result.ok, result.actions, result.recovered_refs) == (False, (), ())
    assert content(damaged) == before


def test_what_is_needed_and_cannot_be_had_stays_where_it_is(whole: Path, damaged: Path) -> None:
    for name in objects(damaged):
        flip(damaged / name)
    before = content(damaged)
    result = repair(damaged)
    assert (result.ok, result.actions, result.quarantine) == (False, (), "")
    assert content(damaged) == before
    assert {each.path for each in result.unrepaired} >= set(objects(whole))


def test_corrupt_garbage_is_moved_out_of_the_way(whole: Path, damaged: Path) -> None:
    with Repository.open_path(damaged) as repo:
        name = f"objects/{repo.ensure_object(b'garbage').id.path}"
    good = content(damaged)
    flip(damaged / name)
    bad = (damaged / name).read_bytes()
    strange = f"{Path(name).parent}/no-object"
    (damaged / strange).write_bytes(b"?")
    result = repair(damaged)
    assert (result.ok, result.affected_refs) == (True, ())
    assert actions(result) == sorted([(name, "quarantined"), (strange, "quarantined")])
    assert content(damaged) == {path: good[path] for path in good.keys() - {name}} == content(whole)
    assert content(damaged / result.quarantine) == {name: bad, strange: b"?"}


def test_intact_garbage_stays(damaged: Path, whole: Path) -> None:
    with Repository.open_path(damaged) as repo:
        repo.ensure_object(b"garbage")
    flip(damaged / objects(whole)[0])
    before = content(damaged)
    assert repair(damaged, whole).ok
    assert content(damaged).keys() == before.keys()


def test_a_file_in_the_place_of_a_directory_of_objects_is_moved(whole: Path, damaged: Path) -> None:
    shard = Path(objects(damaged)[0]).parent
    shutil.rmtree(damaged / shard)
    (damaged / shard).write_bytes(b"in the way")
    result = repair(damaged, whole)
    assert result.ok
    assert content(damaged) == content(whole)
    assert (str(shard), "quarantined") in actions(result)


# -- sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", Algorithm)
def test_another_algorithm_is_refused_before_anything_is_done(
    whole: Path, damaged: Path, tmp_path: Path, algorithm: Algorithm
) -> None:
    other = next(each for each in Algorithm if each is not algorithm)
    target, source = make(tmp_path / "target", algorithm), make(tmp_path / "source", other)
    for name in objects(target):
        flip(target / name)
    before = content(target)
    with pytest.raises(AlgorithmMismatchError, match=rf"{source}, from which to repair .* uses {other.text}"):
        repair(target, source)
    assert content(target) == before
    result = repair(target, source / "objects")  # files are files
    assert [each for each in result.actions if each.action != "replaced"] == []
    with Repository.open_path(target) as repo:
        # Streams and images have other content there, and are made anew by what knows of OCI.
        assert result.before.objects_corrupted - len(result.actions) == result.after.objects_corrupted > 0
        assert repo.algorithm is algorithm


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_a_source_that_is_not_there_is_an_error(damaged: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=name):
        repair(damaged, tmp_path / name)


def test_a_source_with_a_broken_meta_json_is_an_error(damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "meta.json").symlink_to("nowhere")
    with pytest.raises(RepositoryNotFoundError):
        repair(damaged, tmp_path / "source")


def test_the_repository_itself_is_of_no_use_and_does_no_harm(damaged: Path) -> None:
    flip(damaged / objects(damaged)[0])
    before = content(damaged)
    result = repair(damaged, damaged, damaged / "objects")
    assert (result.ok, result.actions) == (False, ())
    assert content(damaged) == before


def test_a_directory_is_searched_whatever_is_in_it(whole: Path, damaged: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "deeper").mkdir(parents=True)
    os.mkfifo(source / "pipe")
    (source / "loop").symlink_to(source)
    (source / "dangling").symlink_to("nowhere")
    (source / "empty").write_bytes(b"")
    for at, name in enumerate(objects(whole)):
        shutil.copy(whole / name, source / ("deep/deeper" if at % 2 else "deep") / f"file {at}")
        remove(damaged / name)
    assert repair(damaged, source).ok
    assert content(damaged) == content(whole)


def test_files_of_sizes_that_cannot_fit_are_not_read(
    whole: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Repository.open_path(whole) as repo:
        names = {each.path: each for each in repo.objects_for_image(image_id(whole).hex())}
    victim = max(names, key=lambda name: (whole / "objects" / name).stat().st_size)
    remove(damaged / "objects" / victim)
    with Repository.open_path(damaged) as repo:
        damage = Damage(state_of(repo), FsckResult())
        size = (whole / "objects" / victim).stat().st_size
        assert damage.sizes(damage.wanted) == {names[victim]: size}
        other = ObjectId(bytes(repo.algorithm.digest_size))
        assert damage.sizes([names[victim], other]) == {names[victim]: None, other: None}
    read: list[int] = []
    from composefs_async._maintenance.repair import sources as repair_sources

    digest = repair_sources.digest_descriptors

    def record(fds: Any, algorithm: Algorithm) -> Any:
        read.extend(os.fstat(fd).st_size for fd in fds)
        return digest(fds, algorithm)

    monkeypatch.setattr(repair_sources, "digest_descriptors", record)
    assert repair(damaged, whole / "objects").ok
    assert set(read) == {size}


# -- names -------------------------------------------------------------------------------------


def first_level(path: Path) -> list[str]:
    return sorted(name for name in content(path) if name.startswith(("streams/", "images/")) and "/refs/" not in name)


def test_names_of_objects_that_are_there_are_made_again(whole: Path, damaged: Path) -> None:
    """Of images by their ids, of layers and configs by what refers to them, of manifests by their content."""
    names = first_level(damaged)
    for name in names:
        (damaged / name).unlink()
    result = repair(damaged)
    assert result.ok, result.unrepaired
    assert content(damaged) == content(whole)
    assert actions(result) == [(name, "linked") for name in names]
    assert result.affected_refs == result.recovered_refs == ("images/refs/an/image", *TAGS)


@pytest.mark.parametrize("name", ["oci-layer", "oci-config", "oci-manifest", "images"])
def test_one_name_is_made_again(whole: Path, damaged: Path, name: str) -> None:
    for path in first_level(whole):
        if path.startswith((name, f"streams/{name}")):
            (damaged / path).unlink()
            result = repair(damaged)
            assert (result.ok, actions(result)) == (True, [(path, "linked")])
            assert content(damaged) == content(whole)


def test_names_and_objects_together_come_from_another_repository(whole: Path, damaged: Path) -> None:
    shutil.rmtree(damaged / "objects")
    for name in first_level(damaged):
        (damaged / name).unlink()
    result = repair(damaged, whole)
    assert result.ok, result.unrepaired
    assert content(damaged) == content(whole)


def test_of_several_streams_of_a_manifest_the_one_that_leads_to_most_is_named(whole: Path, damaged: Path) -> None:
    """Pulls of composefs-rs leave manifests that know no images."""
    with Repository.open_path(damaged) as repo:
        image = open_image(repo, "basic")
        stored = repo.ensure_object(image.manifest.raw)
        for refs in ([], [(f"config:{image.manifest.config.digest}", ObjectId(bytes(32)))]):
            writer = SplitstreamWriter(repo.algorithm, OCI_MANIFEST)
            for name, object_id in refs:
                writer.add_named_stream_ref(name, object_id)
            writer.write_reference(stored.id)
            writer.add_external_size(stored.size)
            repo.ensure_object(writer.done())
    name = f"streams/oci-manifest-{image.manifest.digest}"
    (damaged / name).unlink()
    assert repair(damaged).ok
    assert content(damaged)[name] == content(whole)[name]


def test_a_stream_with_another_content_gets_no_name(whole: Path, damaged: Path, tmp_path: Path) -> None:
    """Neither from here nor from a repository where the name leads to it."""
    name = next(name for name in first_level(damaged) if "manifest" in name)
    liar = copy(whole, tmp_path / "liar")
    other = next(each for each in first_level(whole) if "manifest" in each and each != name)
    for path in (liar / name, damaged / name):
        path.unlink()
    os.symlink(content(whole)[other], liar / name)
    (damaged / "objects" / Path(str(content(whole)[name])).relative_to("../objects")).unlink()
    result = repair(damaged, liar)
    assert name not in content(damaged)
    assert not result.ok


WRONG: dict[str, Callable[[Path, str], str]] = {
    "absolute": lambda path, target: str(path.parent / target),
    "other prefix": lambda path, target: f"../../x/{Path(target).parent.name}/{Path(target).name}",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_links_of_a_wrong_form_are_made_right(whole: Path, damaged: Path, wrong: Callable[[Path, str], str]) -> None:
    for name in first_level(damaged):
        target = os.readlink(damaged / name)
        (damaged / name).unlink()
        (damaged / name).symlink_to(wrong(damaged / name, target))
    result = repair(damaged)
    assert result.ok, result.unrepaired
    assert content(damaged) == content(whole)


def test_the_name_of_an_image_leads_to_that_image(whole: Path, damaged: Path) -> None:
    one, two = [name for name in first_level(damaged) if name.startswith("images/")][:2]
    (damaged / one).unlink()
    (damaged / one).symlink_to(os.readlink(damaged / two))
    result = repair(damaged)
    assert (result.ok, actions(result)) == (True, [(one, "linked")])
    assert content(damaged) == content(whole)


def test_references_of_a_wrong_form_are_made_right(whole: Path, damaged: Path) -> None:
    link = damaged / TAGS[1]
    target = os.readlink(link)
    link.unlink()
    link.symlink_to(f"../{target}")
    result = repair(damaged)
    assert result.ok, result.unrepaired
    assert content(damaged) == content(whole)


@pytest.mark.parametrize("name", ["streams/name", "streams/refs/name", "images/name", "images/refs/name"])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_what_stands_among_names_and_is_none_is_moved(whole: Path, damaged: Path, name: str, kind: str) -> None:
    if kind == "file":
        (damaged / name).write_bytes(b"?")
    else:
        os.mkfifo(damaged / name)
    result = repair(damaged)
    assert (result.ok, actions(result)) == (True, [(name, "quarantined")])
    assert content(damaged) == content(whole)
    assert os.path.lexists(damaged / result.quarantine / name)


def test_a_file_in_the_place_of_a_link_gives_way_to_it(whole: Path, damaged: Path) -> None:
    for name in first_level(damaged):
        (damaged / name).unlink()
        (damaged / name).write_bytes(b"?")
    result = repair(damaged)
    assert result.ok, result.unrepaired
    assert content(damaged) == content(whole)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("target", ["nothing", "../meta.json", f"../objects/aa/{'b' * 126}", "itself"])
def test_links_that_can_lead_to_no_object_give_way(whole: Path, damaged: Path, target: str, dry_run: bool) -> None:
    layer = next(name for name in first_level(damaged) if "layer" in name)
    odd = {"streams/odd", "images/odd", layer}
    (damaged / layer).unlink()
    for name in odd:
        (damaged / name).symlink_to(Path(name).name if target == "itself" else target)
    before = content(damaged)
    result = repair(damaged, dry_run=dry_run)
    assert (result.ok, result.unrepaired) == (True, ())
    assert sorted(each.path for each in result.actions if each.action == "quarantined") == sorted(odd)
    assert [each.path for each in result.actions if each.action == "linked"] == [layer]
    assert content(damaged) == (before if dry_run else content(whole))


def test_the_name_of_one_image_that_leads_to_another_is_put_aside_unless_a_reference_means_it(
    whole: Path, damaged: Path
) -> None:
    image, digits = image_id(damaged), 2 * (Algorithm.SHA256.digest_size - 1)
    names = [f"images/{first}{'0' * digits}" for first in ("aa", "bb")]
    for name in names:
        (damaged / name).symlink_to(f"../objects/{image.path}")
    (damaged / "images/refs/b").symlink_to(f"../{names[1].removeprefix('images/')}")
    result = repair(damaged, whole)
    assert actions(result) == [(names[0], "quarantined")]
    assert [each.path for each in result.unrepaired] == [names[1]]


# -- dry runs ----------------------------------------------------------------------------------


@sources
def test_a_dry_run_says_the_same_and_does_nothing(whole: Path, damaged: Path, below: str) -> None:
    with Repository.open_path(damaged) as repo:
        kept = {f"objects/{each.path}" for each in repo.objects_for_image(image_id(whole).hex())}
        garbage = f"objects/{repo.ensure_object(b'garbage').id.path}"
    for at, name in enumerate(sorted(kept)):
        (flip if at % 2 else remove)(damaged / name)
    flip(damaged / garbage)
    (damaged / first_level(damaged)[0]).unlink()
    (damaged / "streams" / "stray").write_bytes(b"")
    before = content(damaged)
    said = repair(damaged, whole / below, dry_run=True)
    assert content(damaged) == before
    assert said.unrepaired == ()
    assert (said.ok, said.dry_run, said.quarantine, said.after.ok) == (True, True, "", True)
    done = repair(damaged, whole / below)
    assert done.ok
    assert (actions(said), said.affected_refs, said.recovered_refs) == (
        actions(done),
        done.affected_refs,
        done.recovered_refs,
    )


def test_a_dry_run_says_what_would_be_left(whole: Path, damaged: Path, tmp_path: Path) -> None:
    first, second = objects(damaged)[:2]
    source = copy(whole, tmp_path / "source")
    remove(source / second)
    for name in (first, second):
        flip(damaged / name)
    said = repair(damaged, source, dry_run=True)
    assert (said.ok, actions(said)) == (False, [(first, "replaced")])
    assert [each.path for each in said.unrepaired] == [second]


# -- interruptions -----------------------------------------------------------------------------


LEFTOVER = re.compile(r"\.(tmp-object|symlink)-[^/]*$")
"""What gc removes."""


class Stop(BaseException):
    """The process ends here."""


class Interrupter:
    """Lets the *count*th call that changes the file system be the last one, before or after it has its effect."""

    CALLS = ("link", "rename", "symlink", "mkdir", "fsync", "unlink")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, *, after: bool) -> None:
        self.left, self._after = count, after
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left < 0:
                raise Stop
            self.left -= 1
            if self.left < 0 and not self._after:
                raise Stop
            result = function(*args, **kwargs)
            if self.left < 0:
                raise Stop
            return result

        return call


def damage_everything(path: Path) -> None:
    for at, name in enumerate(objects(path)):
        list(DAMAGES.values())[at % len(DAMAGES)](path / name)
    for at, name in enumerate(first_level(path)):
        if at % 3 == 0:
            (path / name).unlink()
    (path / "streams" / "stray").write_bytes(b"?")


def not_worse(before: dict[str, bytes | str], now: dict[str, bytes | str], good: dict[str, bytes | str]) -> None:
    for name, expected in good.items():
        was, found = before.get(name), now.get(name)
        # Moving a corrupt object away and putting the good one in place are two steps where links cannot be made.
        assert found in (was, expected) or found is None, name
        assert was != expected or found == expected, f"{name} was whole"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interruption_anywhere_makes_nothing_worse(whole: Path, damaged: Path, after: bool, tmp_path: Path) -> None:
    damage_everything(damaged)
    before, good = content(damaged), content(whole)
    ended = False
    count = 0
    while not ended:
        copied = copy(damaged, tmp_path / "copied")
        with pytest.MonkeyPatch.context() as monkeypatch, Repository.open_path(copied) as repo:
            Interrupter(monkeypatch, count, after=after)
            try:
                repo.repair([whole])
                ended = True
            except Stop:
                pass
        not_worse(before, content(copied), good)
        result = repair(copied, whole)
        assert result.ok, (count, result.unrepaired)
        left = {name: found for name, found in content(copied).items() if not LEFTOVER.search(name)}
        assert left == good, count
        count += 13
    assert count > 100


def test_objects_are_flushed_before_they_are_in_place(
    whole: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in objects(damaged)[:3]:
        flip(damaged / name)
    with Repository.open_path(damaged) as repo:
        syncs = state_of(repo).syncs
        sync, rename = syncs.sync, os.rename
        monkeypatch.setattr(syncs, "sync", lambda: (order.append("flush"), sync())[1])
        monkeypatch.setattr(os, "rename", lambda *args, **kwargs: (order.append("rename"), rename(*args, **kwargs))[1])
        assert repo.repair([whole]).ok
    assert order == ["flush", "rename", "rename", "rename", "flush"]


# -- both forms --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_async_form_does_the_same_and_reports_on_the_event_loop(whole: Path, damaged: Path) -> None:
    events: list[tuple[ProgressEvent, int]] = []
    name = objects(damaged)[0]
    flip(damaged / name)
    async with await Repository.open_path_async(damaged) as repo:
        result = await repo.repair_async([whole], progress=lambda event: events.append((event, threading.get_ident())))
    assert result.actions == (RepairAction(name, "replaced", str(whole)),)
    assert content(damaged) == content(whole)
    assert {thread for _, thread in events} == {threading.get_ident()}
    assert Message(f"{name}: replaced from {whole}") in [event for event, _ in events]


def test_a_check_can_end_it(whole: Path, damaged: Path) -> None:
    for name in objects(damaged):
        flip(damaged / name)
    with Repository.open_path(damaged) as repo:
        state, run = state_of(repo), repairing.Repair
        begun = run.begin(state)
        with pytest.raises(Stop):
            begun.take(repairing.open_source(whole, repo.algorithm), check=_stop)
    assert repair(damaged, whole).ok


def _stop() -> None:
    raise Stop


# -- secure repositories -----------------------------------------------------------------------


def test_what_is_only_not_protected_is_replaced_by_a_protected_copy(
    whole: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    names = objects(damaged)
    unprotected = names[::2]
    machine.protected = {(damaged / name).stat().st_ino for name in names if name not in unprotected}
    with Repository.open_path(damaged) as repo:
        state = state_of(repo)
        state.secure = state.verity_works = True
        result = repo.repair()
        assert result.ok, result.unrepaired
        assert repo.fsck().ok
    assert [(each.path, each.action) for each in result.actions] == [(name, "replaced") for name in unprotected]
    assert {each.source for each in result.actions} == {repairing.ITSELF}
    assert all((damaged / name).stat().st_ino in machine.protected for name in names)
    assert content(damaged) == content(whole)
