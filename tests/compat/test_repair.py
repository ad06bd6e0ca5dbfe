"""Repaired repositories in the eyes of cfsctl, and its repositories as sources."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.oci.image_repair import repair
from composefs_async.repository import Repository

from ..maintenance.damaging import CASES, DAMAGES, LAYOUTS, content, copy, cut, flip, make, objects, remove
from ..oci.test_image_repair import golden


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("whole") / "repo")


def mend(path: Path, *sources: str | Path) -> bool:
    with Repository.open_path(path) as repo:
        return anyio.run(partial(repair, repo, sources)).ok


@pytest.mark.parametrize("kind", ["repository", "directory", "image directories"])
@pytest.mark.parametrize("damage", [remove, flip, cut])
def test_its_checks_find_nothing_afterwards(
    whole: Path, tmp_path: Path, cfsctl: Callable[..., Any], damage: Callable[[Path], None], kind: str
) -> None:
    path = copy(whole, tmp_path / "damaged")
    for name in objects(path):
        damage(path / name)
    program = cfsctl(path)
    assert not program.json("fsck")["ok"]
    layouts = [f"oci:{LAYOUTS}/{case}" for case in CASES]
    sources: dict[str, list[str | Path]] = {
        "repository": [whole],
        "directory": [whole / "objects"],
        "image directories": [*layouts],
    }
    assert mend(path, *sources[kind])
    program.assert_sound()
    program("gc")
    program.assert_sound()
    assert content(path) == content(whole)


def test_it_takes_no_notice_of_what_was_put_aside(whole: Path, tmp_path: Path, cfsctl: Callable[..., Any]) -> None:
    path = copy(whole, tmp_path / "damaged")
    for at, name in enumerate(objects(path)):
        list(DAMAGES.values())[at % 4](path / name)
    assert mend(path, whole)
    aside = sorted((path / ".composefs-async" / "quarantine").rglob("*"))
    assert aside != []
    program = cfsctl(path)
    program("gc")
    program.assert_sound()
    assert sorted((path / ".composefs-async" / "quarantine").rglob("*")) == aside


@pytest.mark.parametrize("flavour", ["g4-sha256-v1", "g4-sha256-v2", "g4-sha512-v1", "g3-sha512"])
def test_its_repositories_are_sources_and_can_be_repaired(
    flavour: str, tmp_path: Path, cfsctl: Callable[..., Any]
) -> None:
    source = golden(flavour, tmp_path)
    path = copy(source, tmp_path / "damaged")
    for at, name in enumerate(objects(path)):
        list(DAMAGES.values())[at % 3](path / name)
    mend(path, source)  # what no kernel would read stays in both
    kept = content(path)
    assert {name: kept.get(name) for name in kept} == {name: content(source)[name] for name in kept}
    cfsctl(path).assert_sound()


def test_layers_that_it_cut_off_are_made_whole_for_it_too(tmp_path: Path, cfsctl: Callable[..., Any]) -> None:
    path = golden("g3-sha256", tmp_path)
    names = sorted(each.name for each in LAYOUTS.iterdir() if (each / "oci-layout").is_file())
    mend(path, *(f"oci:{LAYOUTS}/{name}" for name in names))
    program = cfsctl(path)
    program.assert_sound()
    program("gc")
    program.assert_sound()
    with Repository.open_path(path) as repo:
        assert [each.kind for each in repo.fsck().errors] == ["image-invalid"]
