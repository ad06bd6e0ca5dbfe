"""Processes that import, collect garbage and check at the same time, with cfsctl beside them: nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import composefs_async
from composefs_async.repository import Repository

from .crashing import Contents, Images, make, problems

SECONDS = float(os.environ.get("COMPOSEFS_ASYNC_STRESS_SECONDS", "60"))


@pytest.mark.stress
@pytest.mark.timeout(SECONDS * 3 + 120)
@pytest.mark.parametrize("roles", [("import", "collect"), ("import", "collect", "import", "cfsctl", "collect")])
def test_nothing_is_lost_when_processes_work_together(tmp_path: Path, roles: tuple[str, ...]) -> None:
    if "cfsctl" in roles and not shutil.which("cfsctl"):
        pytest.skip("cfsctl is not on PATH")
    path, images = make(tmp_path / "repo"), Images(tmp_path / "images")
    installed, checkout = Path(composefs_async.__file__).parents[1], Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{installed}:{checkout}"}
    common = [str(path), str(images.directory), str(SECONDS / 2 if len(roles) > 2 else SECONDS)]
    programs = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.maintenance.working", role, *common, str(seed)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed, role in enumerate(roles)
    ]
    told = [each.communicate()[0] for each in programs]
    print(*told, sep="\n")
    assert [each.returncode for each in programs] == [0] * len(roles), "\n".join(told)
    assert problems(path) == []
    with Repository.open_path(path) as repo:
        for each in repo.leases():
            repo.drop_lease(each.manifest_digest)
        repo.gc()
    found = Contents.read(path)
    assert found.objects == found.needed
    if cfsctl := shutil.which("cfsctl"):
        subprocess.run([cfsctl, "--insecure", "--repo", path, "fsck"], check=True)


def test_a_reference_that_goes_during_a_check_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def listed(fd: int) -> list[str]:
        names = listdir(fd)
        if "mine" in names:
            repo.remove_reference("streams", "mine")
        return names

    with Repository.open_path(make(tmp_path / "repo")) as repo:
        repo.ensure_stream("stream", 0, lambda writer: None, "mine")
        monkeypatch.setattr(os, "listdir", listed)
        assert repo.fsck().findings == ()
        assert repo.references() == []
