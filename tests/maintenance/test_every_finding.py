"""Every kind of finding comes of a made corruption, and each is gone after a repair or has a remedy of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async.findings import KINDS
from composefs_async.oci import image_fsck, repair
from composefs_async.results import Unrepaired

from ..maintenance.corruptions import CASES, OCI_CASES, Case, OciCase, Victim, damaged

ALL: list[Case | OciCase] = [*CASES, *OCI_CASES]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim.make(tmp_path_factory.mktemp("sound"))


def test_no_kind_is_without_a_corruption_and_none_without_a_repair_or_a_remedy(sound: Victim, tmp_path: Path) -> None:
    produced, mended = set[str](), set[str]()
    for case in ALL:
        (directory := tmp_path / case.name).mkdir()
        with pytest.MonkeyPatch.context() as patch, damaged(case, sound, directory, patch) as (_, _, findings):
            kinds = {finding.kind for finding in findings}
        produced |= kinds
        mended |= kinds - {*case.left}
    assert produced == KINDS.keys()
    assert {name for name, kind in KINDS.items() if not kind.remedy} - mended == set()


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_what_a_repair_leaves_has_a_remedy(
    case: Case | OciCase, sound: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with damaged(case, sound, tmp_path, monkeypatch) as (repo, victim, _):
        result = anyio.run(partial(repair, repo, victim.sources))
        after = image_fsck.fsck(repo, *(case.arguments if isinstance(case, OciCase) else ()))
    left = {finding.kind for finding in (*after.repo.findings, *after.findings)}
    assert left == {*case.left}
    assert [kind for kind in left if not KINDS[kind].remedy] == []
    assert result.unrepaired == tuple(Unrepaired(each.path, each.text, each.remedy) for each in after.repo.errors)
