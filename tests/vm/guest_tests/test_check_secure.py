"""Our check of a secure repository: all that is not protected under its name is found, natively and in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async import Algorithm, ObjectId, Repository, fsverity
from composefs_async._maintenance.fsck import object_reader
from composefs_async.findings import Finding
from composefs_async.oci import pull


@pytest.fixture(params=["as built", "python"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(object_reader, "NATIVE", False)


@pytest.fixture
def pulled(data_dir: Path, oci_layout: Path) -> Path:
    with Repository.init(data_dir / "repo", algorithm=Algorithm.SHA256) as repo:
        anyio.run(pull, repo, f"oci:{oci_layout}:latest")
        assert repo.secure
    return data_dir / "repo"


def findings(repository: Path) -> tuple[Finding, ...]:
    with Repository.open_path(repository) as repo:
        return repo.fsck().findings


def large(pulled: Path, layer_files: dict[str, bytes]) -> tuple[ObjectId, Path]:
    object_id = fsverity.digest(layer_files["usr/lib/large"], Algorithm.SHA256)
    return object_id, pulled / "objects" / object_id.path


def test_a_secure_repository_is_sound(pulled: Path) -> None:
    with Repository.open_path(pulled) as repo:
        found = repo.fsck()
    assert (found.findings, found.streams_checked) == ((), 3)
    assert found.objects_checked == len(list((pulled / "objects").glob("*/*")))


def test_right_content_that_is_not_protected_is_found(pulled: Path, layer_files: dict[str, bytes]) -> None:
    object_id, path = large(pulled, layer_files)
    path.unlink()
    path.write_bytes(layer_files["usr/lib/large"])
    assert findings(pulled) == (Finding("object-verity-missing", f"objects/{object_id.path}"),)


def test_other_content_that_is_protected_is_found(pulled: Path, kernel: Any, layer_files: dict[str, bytes]) -> None:
    object_id, path = large(pulled, layer_files)
    content = b"x" + layer_files["usr/lib/large"][1:]
    path.unlink()
    path.write_bytes(content)
    kernel.enable(path, Algorithm.SHA256)
    measured = fsverity.digest(content, Algorithm.SHA256).hex()
    assert findings(pulled) == (Finding("object-digest-mismatch", f"objects/{object_id.path}", measured=measured),)


def test_protection_by_another_algorithm_is_found(pulled: Path, kernel: Any, layer_files: dict[str, bytes]) -> None:
    object_id, path = large(pulled, layer_files)
    path.unlink()
    path.write_bytes(layer_files["usr/lib/large"])
    kernel.enable(path, Algorithm.SHA512)
    fields = {"detail": "measuring fs-verity", "cause": "it is protected by another algorithm"}
    assert findings(pulled) == (Finding("object-verity-failed", f"objects/{object_id.path}", **fields),)


def test_insecure_use_of_a_secure_repository_goes_by_content(pulled: Path, layer_files: dict[str, bytes]) -> None:
    _, path = large(pulled, layer_files)
    path.unlink()
    path.write_bytes(layer_files["usr/lib/large"])
    with Repository.open_path(pulled) as repo:
        repo.set_insecure()
        assert repo.fsck().ok
