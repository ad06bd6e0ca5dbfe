"""Images that podman and skopeo have stored and saved, and what they make of those that are written here."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from composefs_async.oci import pull
from composefs_async.oci.exporting.export import export_images
from composefs_async.repository import Repository
from tests.oci.sources_golden import CONFIG, DIFF_IDS, PULLED, unpack

Tool = Callable[[str], Path]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0:
        pytest.skip("stores with other users' files need root")
    return unpack(tmp_path_factory.mktemp("golden"), "archives") / "golden-oci"


@pytest.fixture
def store(golden: Path, tmp_path: Path, tool: Tool) -> str:
    """A store of the driver vfs, which needs no mount, with the golden image; how references name it."""
    place = f"vfs@{tmp_path}/store+{tmp_path}/run"
    target = f"containers-storage:[{place}]localhost/golden:v1"
    run(tool("skopeo"), "copy", "--insecure-policy", f"oci:{golden}", target)
    return place


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


def bring(reference: str, path: Path) -> tuple[str, str, list[str]]:
    async def work() -> tuple[str, str, list[str]]:
        async with await Repository.init_async(path, insecure=True) as repo:
            result = await pull(repo, reference, tag="it")
            return result.manifest_digest, result.config_digest, [layer.diff_id for layer in result.layers]

    return anyio.run(work)


def test_store_of_skopeo(store: str, tmp_path: Path) -> None:
    found = bring(f"containers-storage:[{store}]localhost/golden:v1", tmp_path / "r")
    assert found == (PULLED, CONFIG, DIFF_IDS)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir", "docker-dir"])
def test_what_podman_saves(store: str, tmp_path: Path, tool: Tool, form: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # podman wants one of at most 50 characters
        podman = [tool("podman"), "--storage-driver", "vfs", "--root", f"{tmp_path}/store", "--runroot", short]
        run(*podman, "save", "-q", "--format", form, "-o", tmp_path / "out", "localhost/golden:v1")
    transport = {"oci-dir": "oci", "docker-dir": "dir"}.get(form, form)
    _, config, diff_ids = bring(f"{transport}:{tmp_path / 'out'}", tmp_path / "r")
    assert (config, diff_ids) == (CONFIG, DIFF_IDS)


@pytest.mark.parametrize("destination", ["oci-archive:{}/a.tar:t", "docker-archive:{}/a.tar:localhost/x:1", "dir:{}/d"])
def test_skopeo_takes_what_is_written(golden: Path, tmp_path: Path, tool: Tool, destination: str) -> None:
    place = destination.format(tmp_path)

    async def work() -> None:
        async with await Repository.init_async(tmp_path / "r", insecure=True) as repo:
            await pull(repo, f"oci:{golden}", tag="golden")
            await export_images(repo, ["golden"], place)

    anyio.run(work)
    target = f"containers-storage:[vfs@{tmp_path}/store+{tmp_path}/run]localhost/back:1"
    run(tool("skopeo"), "copy", "--insecure-policy", place, target)
    _, config, diff_ids = bring(target, tmp_path / "back")
    assert (config, diff_ids) == (CONFIG, DIFF_IDS)


def test_image_that_is_removed_meanwhile_is_never_half_there(store: str, tmp_path: Path, tool: Tool) -> None:
    reference = f"containers-storage:[{store}]localhost/golden:v1"
    removing = subprocess.Popen([tool("skopeo"), "delete", reference], stderr=subprocess.DEVNULL)
    try:
        assert bring(reference, tmp_path / "r")[2] == DIFF_IDS
    except Exception:
        assert list((tmp_path / "r/streams").glob("oci-*")) == []
    finally:
        removing.wait(60)
