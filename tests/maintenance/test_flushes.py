"""Every operation does things in an order that a power loss allows; see `flushing` for what is taken for granted.

An object is flushed before a name leads to it, a name is durably gone before an object goes that it led to, and what an
operation calls durable is flushed when it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.digest import Algorithm

from ..maintenance import generations
from ..maintenance.crashing import Images, copy, make
from ..maintenance.flushing import recording
from ..maintenance.test_crashes import CASES, Case
from ..maintenance.test_crashes_of_repair import damage, init, repair, repair_images, reset, upgrade

WITHOUT_FLUSHES = ("layer", "stream", "image", "pull", "gc")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images") / "oci")


def prepared(case: Case, images: Images, path: Path) -> Path:
    case.prepare(images, make(path))
    return path


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_order_allows_a_power_loss(images: Images, tmp_path: Path, case: Case) -> None:
    path = prepared(case, images, tmp_path / "repo")
    with recording(path) as disk:
        case.work(images, path)
    assert disk.wrong == []


@pytest.mark.parametrize("name", WITHOUT_FLUSHES)
def test_forgotten_flushes_are_seen(images: Images, tmp_path: Path, name: str) -> None:
    path = prepared(CASES[name], images, tmp_path / "repo")
    with recording(path, flush=False) as disk:
        CASES[name].work(images, path)
    assert [each for each in disk.wrong if " before " in each or " may come back" in each]


@pytest.mark.parametrize("work", [repair, repair_images])
def test_order_of_repair_allows_a_power_loss(
    images: Images, tmp_path: Path, work: Callable[[str, Path], object]
) -> None:
    whole = make(tmp_path / "whole")
    images.pull(whole, "a")
    damaged = copy(whole, tmp_path / "damaged")
    damage(damaged)
    with recording(damaged) as disk:
        work(str(whole) if work is repair else f"oci:{images.directory}", damaged)
    assert disk.wrong == []


def old(path: Path, images: Images) -> None:
    generations.february(path, Algorithm.SHA256, generations.Image.make(path.parent / "image"))


def pulled(path: Path, images: Images) -> None:
    images.pull(make(path), "a")


@pytest.mark.parametrize(
    ("prepare", "work"), [(lambda *_: None, init), (old, upgrade), (pulled, reset)], ids=["init", "upgrade", "reset"]
)
def test_order_of_metadata_allows_a_power_loss(
    images: Images, tmp_path: Path, prepare: Callable[[Path, Images], object], work: Callable[[Path], object]
) -> None:
    prepare(tmp_path / "repo", images)
    with recording(tmp_path / "repo") as disk:
        work(tmp_path / "repo")
    assert disk.wrong == []
