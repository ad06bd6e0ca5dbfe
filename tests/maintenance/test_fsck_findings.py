"""Every finding that a check has, produced by a made corruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from composefs_async._maintenance.fsck import context as check_run
from composefs_async._maintenance.fsck import object_reader
from composefs_async.digest import Algorithm
from composefs_async.findings import Finding
from composefs_async.repository import Repository
from composefs_async.results import FsckResult

from ..maintenance.corruptions import CASES, Case, Victim, damaged

SOUND = FsckResult(objects_checked=13, streams_checked=4, images_checked=1)
cases = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim.make(tmp_path_factory.mktemp("sound"))


@pytest.fixture(params=["as built", "python"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(object_reader, "NATIVE", False)
        monkeypatch.setattr(check_run, "NATIVE", False)


def expected(case: Case, findings: list[Finding]) -> FsckResult:
    counters = {name: getattr(SOUND, name) + by for name, by in case.counters.items()}
    return replace(SOUND, findings=tuple(findings), **counters)


@cases
def test_corruption_is_found_exactly(
    case: Case, sound: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with damaged(case, sound, tmp_path, monkeypatch) as (repo, _, findings):
        found = repo.fsck()
    assert found == expected(case, findings)
    assert found.ok == all(finding.is_notice for finding in findings)


@pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.value)
def test_nothing_is_found_in_a_sound_repository(algorithm: Algorithm, tmp_path: Path) -> None:
    victim = Victim.make(tmp_path, algorithm)
    with Repository.open_path(victim.path) as repo:
        assert repo.fsck() == SOUND
        assert repo.fsck(metadata_only=True) == replace(SOUND, objects_checked=0)
