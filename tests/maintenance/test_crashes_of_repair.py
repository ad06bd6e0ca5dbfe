"""Repair, upgrade, reset and init stopped before each of their steps: nothing gets worse, and the next run ends it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async.digest import Algorithm
from composefs_async.errors import RepositoryNotFoundError
from composefs_async.oci import repair as oci_repair
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.image_upgrade import UpgradeOutcome, upgrade_images
from composefs_async.repository import Repository
from composefs_async.results import RepairResult

from ..maintenance import generations
from ..maintenance.crashing import Contents, Images, copy, every_interruption, make, problems
from ..maintenance.damaging import content, flip, objects

pytestmark = pytest.mark.usefixtures("without_flushes")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images") / "oci")


@pytest.fixture
def whole(tmp_path: Path, images: Images) -> Path:
    path = make(tmp_path / "whole")
    images.pull(path, "a")
    return path


# -- repair ------------------------------------------------------------------------------------


def repair(source: str, path: Path) -> RepairResult:
    with Repository.open_path(path) as repo:
        return repo.repair([source])


def repair_images(source: str, path: Path) -> RepairResult:
    with Repository.open_path(path) as repo:
        return anyio.run(oci_repair, repo, [source])


def damage(path: Path) -> None:
    """Objects that are missing or corrupt, names that are gone, and a file in the place of a link."""
    with Repository.open_path(path) as repo:
        flip(path / "objects" / repo.ensure_object(b"garbage").id.path)
    names = objects(path)
    for name in names[::4]:
        (path / name).unlink()
    for name in names[1::4]:
        flip(path / name)
    links = sorted(each for each in (path / "streams").iterdir() if each.is_symlink())
    links[0].unlink()
    links[1].unlink()
    links[1].write_bytes(b"in the way")


@pytest.mark.parametrize("work", [repair, repair_images])
def test_an_interrupted_repair_makes_nothing_worse(
    whole: Path, images: Images, tmp_path: Path, work: Callable[[str, Path], RepairResult]
) -> None:
    damaged = copy(whole, tmp_path / "damaged")
    damage(damaged)
    good, bad = content(whole), content(damaged)
    operation = partial(work, str(whole) if work is repair else f"oci:{images.directory}")
    assert operation(copy(damaged, tmp_path / "work")).unrepaired == ()
    after = visible(tmp_path / "work")
    assert {name: each for name, each in after.items() if name in good} == good
    count = 0
    for path in every_interruption(operation, damaged, tmp_path / "work"):
        count += 1
        found = visible(path)
        assert found.items() <= after.items() | bad.items()
        assert found.items() >= good.items() & bad.items()
        if count % 3 == 0:  # to repair takes longer than to be interrupted
            assert operation(path).unrepaired == ()
            assert visible(path) == after
            assert quarantined(path) >= {bad[name] for name in bad if bad[name] != after.get(name)}
    assert count > 10


def visible(path: Path) -> dict[str, bytes | str]:
    """What is there, but for temporary names."""
    return {name: each for name, each in content(path).items() if not name.rpartition("/")[2].startswith(".")}


def quarantined(path: Path) -> set[bytes | str]:
    return {each.read_bytes() for each in (path / ".composefs-async/quarantine").rglob("*") if each.is_file()}


# -- upgrade -----------------------------------------------------------------------------------


def upgrade(path: Path) -> object:
    return Repository.upgrade(path)


def test_an_interrupted_upgrade_leaves_all_as_it_was_or_is_done(tmp_path: Path) -> None:
    image = generations.Image.make(tmp_path / "image")
    generations.february(tmp_path / "old", Algorithm.SHA256, image)
    before = generations.entries(tmp_path / "old")
    count = 0
    for path in every_interruption(upgrade, tmp_path / "old", tmp_path / "work"):
        count += 1
        assert generations.entries(path) == before
        upgrade(path)
        assert generations.entries(path) == before
        assert problems(path) == []
    assert count


def test_an_interrupted_upgrade_of_images_goes_on(tmp_path: Path) -> None:
    image = generations.Image.make(tmp_path / "image")
    generations.january(tmp_path / "old", Algorithm.SHA256, image)
    upgrade(tmp_path / "old")

    def work(path: Path) -> list[UpgradeOutcome]:
        with Repository.open_path(path) as repo:
            return [each.outcome for each in upgrade_images(repo)]

    assert work(copy(tmp_path / "old", tmp_path / "work")) == [UpgradeOutcome.UPGRADED]
    after = Contents.read(tmp_path / "work")
    count = 0
    for path in every_interruption(work, tmp_path / "old", tmp_path / "work"):
        count += 1
        with Repository.open_path(path) as repo:
            assert open_image(repo, "app").config is not None
        assert work(path) in ([UpgradeOutcome.UPGRADED], [UpgradeOutcome.CURRENT])
        assert Contents.read(path) == after
        assert problems(path) == []
    assert count > 5


# -- reset and init ----------------------------------------------------------------------------


def reset(path: Path) -> None:
    Repository.reset_metadata(path, algorithm=Algorithm.SHA256, erofs_version=2, insecure=True).close()


def test_an_interrupted_reset_leaves_some_of_the_names_and_all_objects(whole: Path, tmp_path: Path) -> None:
    before = Contents.read(whole)
    count = 0
    for path in every_interruption(reset, whole, tmp_path / "work"):
        count += 1
        found = Contents.read(path)
        assert found.names.items() <= before.names.items()
        assert found.objects == before.objects
        reset(path)
        assert Contents.read(path) == Contents({}, frozenset(), before.objects)
        with Repository.open_path(path) as repo:
            assert repo.metadata.formats.default == 2
    assert count > len(before.names)


def init(path: Path) -> None:
    Repository.init(path, algorithm=Algorithm.SHA256, insecure=True).close()


def test_an_interrupted_init_leaves_nothing_or_a_repository(tmp_path: Path) -> None:
    count = 0
    for path in every_interruption(init, tmp_path / "nothing", tmp_path / "work"):
        count += 1
        found = sorted(path.rglob("*"))
        assert found in ([], [path / "meta.json"])
        if not found and path.exists():
            with pytest.raises(RepositoryNotFoundError):
                Repository.open_path(path)
        init(path)
        assert problems(path) == []
    assert count
