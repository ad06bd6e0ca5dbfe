"""Stores in registries: the same artifacts under tags, published, fetched in ranges, and copied by other tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from composefs_async.errors import StoreError
from composefs_async.exchange import fetch, open_store, publish
from composefs_async.exchange.backends.registry import RegistryStore
from composefs_async.exchange.maintenance import write_index
from composefs_async.oci import Platform, pull
from composefs_async.repository import Repository

from .conftest import await_port, free_port, snapshot

pytestmark = [pytest.mark.anyio]

LAYOUT = Path(__file__).parent.parent / "vectors/layouts/basic"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry on this machine; gives its address."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not on PATH")
    directory, port = tmp_path_factory.mktemp("registry"), free_port()
    storage = {"filesystem": {"rootdirectory": str(directory / "data")}}
    configuration = {"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}
    (directory / "configuration.yml").write_text(json.dumps(configuration))
    command = ["docker-registry", "serve", str(directory / "configuration.yml")]
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        conf = directory / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n')
        patch.setenv("CONTAINERS_REGISTRIES_CONF", str(conf))
        try:
            await_port(process, port)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


async def imported(path: Path) -> None:
    async with Repository.init_async(path, insecure=True) as repo:
        await pull(repo, f"oci:{LAYOUT}", tag="basic", platform=Platform("linux", "amd64"))


@pytest.mark.usefixtures("no_leaks")
async def test_an_image_goes_through_a_registry(registry: str, tmp_path: Path) -> None:
    await imported(tmp_path / "a")
    async with (
        Repository.open_path_async(tmp_path / "a") as repo,
        Repository.init_async(tmp_path / "b", insecure=True) as target,
        open_store(f"docker://{registry}/team/store") as store,
    ):
        for name in ("v1", "a name/with slashes:1"):
            sent = await publish(repo, "basic", store, name=name)
            got = await fetch(target, store, name, tag="basic")
            assert got.manifest_digest == sent.manifest_digest
        again = await publish(repo, "basic", store, name="v1")
        assert again.unchanged
        assert "v1" in [ref.name async for ref in store.refs()]
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


async def test_a_store_that_skopeo_copies_is_a_store(registry: str, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not on PATH")
    await imported(tmp_path / "a")
    async with (
        Repository.open_path_async(tmp_path / "a") as repo,
        open_store(f"file://{tmp_path}/store") as local,
    ):
        await local.init()
        sent = await publish(repo, "basic", local, name="v1")
        await write_index(local)
    where = f"docker://{registry}/copied:v1"
    command = [skopeo, "copy", "-q", "--dest-tls-verify=false", f"oci:{tmp_path}/store:v1", where]
    await anyio.run_process(command)
    async with (
        Repository.init_async(tmp_path / "b", insecure=True) as target,
        open_store(f"docker://{registry}/copied") as store,
    ):
        got = await fetch(target, store, "v1", tag="basic")
        assert got.manifest_digest == sent.manifest_digest
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


@pytest.mark.parametrize("url", ["docker://", "docker://host", "docker://u:p@host/x"])
def test_urls_that_cannot_be_are_refused_without_secrets(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        RegistryStore(url)
    assert "u:p" not in str(caught.value)
