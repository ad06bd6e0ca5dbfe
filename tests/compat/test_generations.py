"""Old repositories that both programs look at: as they are, and after we have upgraded them or pulled over them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import Algorithm
from composefs_async.oci import ensure_images
from composefs_async.oci.image_upgrade import UpgradeOutcome, upgrade_images
from composefs_async.oci.importing.pull import pull
from composefs_async.repository import Repository

from ..maintenance.generations import PLATFORM, Image, entries, february, golden, january

VERSIONS = ["cfsctl", "cfsctl-2026-04"]
versions = pytest.mark.parametrize("version", VERSIONS)
algorithms = pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.value)
Make = Callable[..., Any]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image.make(tmp_path / "layout")


def take(path: Path, image: Image, tag: str = "app") -> None:
    with Repository.open_path(path) as repo:
        anyio.run(partial(pull, repo, image.reference, tag=tag, platform=PLATFORM))


def assert_sound(cfsctl: Make, path: Path, tag: str, config: bytes) -> None:
    """Both programs open the image, find nothing wrong, and keep it when they collect garbage; so do we."""
    for version in VERSIONS:
        program = cfsctl(path, version)
        program.assert_sound()
        assert program("oci", "inspect", tag, "--config").rstrip(b"\n") == config
        program("gc")
        program.assert_sound()
    with Repository.open_path(path) as repo:
        repo.gc()
    for version in VERSIONS:
        cfsctl(path, version).assert_sound()
        assert cfsctl(path, version)("oci", "inspect", tag, "--config").rstrip(b"\n") == config


def image_in(cfsctl: Make, path: Path, tag: str, version: str = "cfsctl") -> str | None:
    found: str | None = json.loads(cfsctl(path, version)("oci", "inspect", tag)).get("composefs_erofs")
    return found


@algorithms
@versions
@pytest.mark.parametrize("build", [january, february], ids=["2026-01", "2026-02"])
def test_what_the_builders_make_is_what_cfsctl_reads(
    build: Make, version: str, algorithm: Algorithm, cfsctl: Make, tmp_path: Path, image: Image
) -> None:
    build(tmp_path / "repo", algorithm, image)
    program = cfsctl(tmp_path / "repo", version)
    for name, content in image.tars.items():
        assert program("cat", f"oci-layer-{name}") == content
    assert program("cat", f"oci-config-{image.config_digest}") == image.config
    if build is february:
        assert program("oci", "inspect", "app", "--config").rstrip(b"\n") == image.config
        program.assert_sound()


@algorithms
def test_an_upgraded_repository_of_february_is_whole_and_gets_images_by_pulling_over(
    algorithm: Algorithm, cfsctl: Make, tmp_path: Path, image: Image
) -> None:
    path = tmp_path / "repo"
    february(path, algorithm, image)
    Repository.upgrade(path)
    assert_sound(cfsctl, path, "app", image.config)
    take(path, image)
    assert_sound(cfsctl, path, "app", image.config)
    for version in VERSIONS:
        found = image_in(cfsctl, path, "app", version)
        assert found is not None
        assert (path / "images" / found).exists()


@algorithms
@pytest.mark.parametrize("dangling", [True, False], ids=["dangling", "one day"])
@pytest.mark.parametrize("how", ["pull", "manifest"])
def test_an_image_of_january_becomes_one_that_cfsctl_opens_and_keeps(
    how: str, dangling: bool, algorithm: Algorithm, cfsctl: Make, tmp_path: Path, image: Image
) -> None:
    path = tmp_path / "repo"
    january(path, algorithm, image, dangling=dangling)
    Repository.upgrade(path)
    if how == "pull":
        take(path, image)
    else:
        with Repository.open_path(path) as repo:
            ensure_images(repo, "app")
    assert_sound(cfsctl, path, "app", image.config)
    assert image_in(cfsctl, path, "app") is not None


def test_our_gc_keeps_an_image_of_january_that_stops_theirs(cfsctl: Make, tmp_path: Path, image: Image) -> None:
    path = tmp_path / "repo"
    january(path, Algorithm.SHA256, image)
    Repository.upgrade(path)
    before = entries(path)
    with pytest.raises(AssertionError, match="Reading symlink"):
        cfsctl(path)("gc")
    with Repository.open_path(path) as repo:
        assert repo.gc().objects_removed == 0
    assert {name: what for name, what in entries(path).items() if not name.startswith(".composefs-async/")} == before


@pytest.mark.parametrize(
    ("flavour", "upgraded_by_us"), [("g3-sha512", True), ("g3-sha256", True), ("g3-sha256", False)]
)
def test_images_of_march_stay_in_sight_by_our_upgrade_and_come_back_after_theirs(
    flavour: str, upgraded_by_us: bool, cfsctl: Make, tmp_path: Path
) -> None:
    path = golden(flavour, tmp_path / "golden")
    if upgraded_by_us:
        result = Repository.upgrade(path)
    else:
        cfsctl(path)("oci", "images")
        result = Repository.upgrade(path)
        assert not result.upgraded
    tags = {each["name"]: each for each in cfsctl(path).json("oci", "images")["images"]}
    containers = [name for name, found in tags.items() if found["is_container"] and name != "pax:latest"]
    seen = {name: image_in(cfsctl, path, name) for name in containers}
    theirs = {name: image_in(cfsctl, path, name, "cfsctl-2026-04") for name in containers}
    assert None not in theirs.values()
    if upgraded_by_us:
        assert result.hidden_images == 0
        assert seen == theirs
    else:
        assert result.hidden_images >= len(containers)
        assert set(seen.values()) == {None}
        with Repository.open_path(path) as repo:
            done = {each.name: each.outcome for each in upgrade_images(repo)}
        assert {done[name] for name in containers} == {UpgradeOutcome.UPGRADED}
        assert None not in {image_in(cfsctl, path, name) for name in containers}
        assert {name: image_in(cfsctl, path, name, "cfsctl-2026-04") for name in containers} == theirs
    for version in VERSIONS:
        cfsctl(path, version)("gc")
    assert {name: image_in(cfsctl, path, name, "cfsctl-2026-04") for name in containers} == theirs


@versions
def test_upgraders_of_several_processes_all_succeed(version: str, cfsctl: Make, tmp_path: Path, image: Image) -> None:
    """cfsctl's may lose the race, and says so; a second command of it finds the repository in order."""
    ours = [sys.executable, "-m", "composefs_async", "--repo"]
    for attempt in range(4):
        path = tmp_path / f"repo{attempt}"
        february(path, Algorithm.SHA256, image)
        program = cfsctl(path, version)
        commands = [[*ours, str(path), "upgrade", "--json"]] * 3
        processes = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for each in commands]
        theirs = [
            subprocess.Popen([program.program, "--repo", path, "oci", "images"], stdout=-1, stderr=-1) for _ in range(2)
        ]
        results = []
        for process in processes:
            out, error = process.communicate(timeout=60)
            assert process.returncode == 0, error.decode()
            results.append(json.loads(out))
        for process in theirs:
            process.communicate(timeout=60)
        assert sum(each["upgraded"] for each in results) <= 1
        assert len({json.dumps(each["erofs_versions"]) for each in results}) == 1
        program.assert_sound()
        with Repository.open_path(path) as repo:
            assert list(repo.metadata.formats) == results[0]["erofs_versions"]
