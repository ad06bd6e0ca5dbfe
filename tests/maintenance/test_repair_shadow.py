"""A dry run of a repair tells what the run does, action by action, whatever is damaged, and changes nothing."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async._sys import files
from composefs_async.oci.image_repair import repair
from composefs_async.repository import Repository, state_of
from composefs_async.results import RepairResult

from .damaging import CASES, DAMAGES, LAYOUTS, content, copy, make, objects, remove
from .machine import Machine

SEEDS = range(200 if os.environ.get("COMPOSEFS_ASYNC_STRESS") == "1" else 20)


def lead_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("../objects/00/" + "0" * 62)


def lead_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("../somewhere")


def stand_in_the_way(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"")


NAMES: tuple[Callable[[Path], None], ...] = (Path.unlink, lead_elsewhere, lead_nowhere, stand_in_the_way)


def swap(path: Path, names: list[str], chance: random.Random) -> None:
    """Let a name lead to what another leads to."""
    first, second = (path / each for each in chance.sample(names, 2))
    if first.is_symlink() and second.is_symlink():
        target = os.readlink(second)
        first.unlink()
        first.symlink_to(target)


def damage(path: Path, chance: random.Random) -> None:
    """Between one and all of the objects, some names and references, and things that do not belong here."""
    found = objects(path)
    for name in chance.sample(found, chance.choice([1, 2, 5, len(found)])):
        chance.choice([*DAMAGES.values()])(path / name)
    links = sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_symlink())
    links = [each for each in links if not each.startswith("objects/")]
    for name in chance.sample(links, chance.randrange(4)):
        chance.choice(NAMES)(path / name)
    if chance.random() < 0.3:
        swap(path, [each for each in links if each.startswith("streams/oci-")], chance)
    if chance.random() < 0.3:
        (path / chance.choice(["objects/zz", "objects/00x", "streams/stray", "images/refs/stray"])).write_bytes(b"x")


def sources_of(whole: Path, chance: random.Random) -> list[str]:
    images = [f"oci:{LAYOUTS}/{case}" for case in CASES]
    choices = [[], [str(whole)], [str(whole / "objects")], images, images[:1], [str(whole / "objects"), *images]]
    return chance.choice(choices)


def mend(path: Path, sources: list[str], **options: Any) -> RepairResult:
    async def run() -> RepairResult:
        async with Repository.open_path_async(path) as repo:
            return await repair(repo, sources, **options)

    return anyio.run(run)


def told(result: RepairResult) -> RepairResult:
    """What a dry run and a run have in common."""
    return replace(result, after=result.before, dry_run=False, quarantine="")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return make(tmp_path_factory.mktemp("whole") / "repo")


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    return copy(whole, tmp_path / "damaged")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_carries_out_what_the_dry_run_told(
    whole: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    chance = random.Random(seed)
    damage(damaged, chance)
    sources = sources_of(whole, chance)
    before = content(damaged)
    plan = mend(damaged, sources, dry_run=True)
    assert (content(damaged), os.listdir(tmp_path / "tmp")) == (before, [])
    done = mend(damaged, sources)
    assert plan.actions == done.actions
    assert told(plan) == told(done)


def test_a_source_that_changes_nothing_needs_no_room(whole: Path, damaged: Path) -> None:
    plan = mend(damaged, [str(whole)], dry_run=True)
    assert (plan.actions, plan.ok, plan.dry_run) == ((), True, True)


def test_a_secure_repository_is_planned_as_it_is_repaired(
    whole: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes back lies where nothing protects it, and counts as the protected object that it will be."""
    machine, names = Machine(monkeypatch), objects(damaged)
    for name in names[::2]:
        remove(damaged / name)
    machine.protected = {(damaged / name).stat().st_ino for name in names[3::4]}

    def mended(dry_run: bool) -> RepairResult:
        with Repository.open_path(damaged) as repo:
            state = state_of(repo)
            state.secure = state.verity_works = True
            return repo.repair([whole], dry_run=dry_run)

    plan, done = mended(True), mended(False)
    assert plan.actions == done.actions
    assert {each.action for each in plan.actions} >= {"restored", "replaced"}
    assert (told(plan), done.ok) == (told(done), True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_temporary_directory_is_named_and_nothing_is_left(
    whole: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    remove(damaged / objects(damaged)[0])

    def full(source: int, target: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "copy_content", full)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        mend(damaged, [str(whole)], dry_run=True)
    assert str(caught.value.filename).startswith(f"{tmp_path}/tmp/composefs-async-repair-")
    assert os.listdir(tmp_path / "tmp") == []


def test_a_temporary_directory_that_cannot_be_written_is_named(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="missing/composefs-async-repair-"):
        mend(damaged, [], dry_run=True)
