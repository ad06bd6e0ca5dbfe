"""A secure repository of cfsctl: what we compute is what it stored and the kernel protects."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async import fsverity
from composefs_async.digest import Algorithm


@pytest.fixture(params=list(Algorithm), ids=lambda algorithm: algorithm.value)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    found: Algorithm = request.param
    return found


@pytest.fixture
def pulled(data_dir: Path, cfsctl: Callable[..., str], oci_layout: Path, algorithm: Algorithm) -> Path:
    """A secure repository into which cfsctl pulled the test image."""
    repository = data_dir / "repository"
    cfsctl(repository, "init", "--algorithm", algorithm.text)
    cfsctl(repository, "oci", "pull", f"oci:{oci_layout}:latest", "test")
    return repository


def objects(repository: Path) -> dict[str, Path]:
    return {path.parent.name + path.name: path for path in (repository / "objects").glob("*/*")}


def test_every_object_has_our_digest_and_the_kernels(
    pulled: Path, kernel: Any, algorithm: Algorithm, layer_files: dict[str, bytes]
) -> None:
    stored = objects(pulled)
    measured = {name: kernel.measure(path) for name, path in stored.items()}
    assert measured == {name: (algorithm.number, name) for name in stored}
    computed = {name: fsverity.digest(path.read_bytes(), algorithm).hex() for name, path in stored.items()}
    assert computed == {name: name for name in stored}
    assert fsverity.digest(layer_files["usr/lib/large"], algorithm).hex() in stored


def test_cfsctl_fsck_passes_and_sees_a_replaced_object(
    pulled: Path, cfsctl: Callable[..., str], algorithm: Algorithm, layer_files: dict[str, bytes]
) -> None:
    cfsctl(pulled, "fsck")
    large = objects(pulled)[fsverity.digest(layer_files["usr/lib/large"], algorithm).hex()]
    large.unlink()
    large.write_bytes(layer_files["usr/lib/large"])  # the right content, unprotected
    with pytest.raises(subprocess.CalledProcessError) as found:
        cfsctl(pulled, "fsck")
    assert large.name in found.value.stdout
