"""Every async function is a checkpoint: whoever has been cancelled gets no further than to call it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import anyio
import pytest

from composefs_async import oci
from composefs_async.oci import catalogue, erofs_images, image_fsck, image_upgrade, stored_layers
from composefs_async.repository import Repository
from composefs_async.splitstream import OCI_LAYER

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

METHODS = sorted(name for name in dir(Repository) if name.endswith("_async"))
MODULES: list[ModuleType] = [catalogue, image_fsck, image_upgrade, erofs_images, stored_layers]
TWINS = [(module, name) for module in MODULES for name in module.__all__ if name.endswith("_async")]
NOTHING = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
async def repo(tmp_path: Path) -> AsyncIterator[Repository]:
    repository = await Repository.init_async(tmp_path / "repo", insecure=True)
    async with repository:
        yield repository


async def goes_no_further(call: Callable[[], object]) -> bool:
    with anyio.CancelScope() as scope:
        scope.cancel()
        found = call()
        if inspect.isawaitable(found):
            await found
        else:
            assert isinstance(found, AsyncIterator)
            await anext(found)
    return scope.cancelled_caught


def required(function: Callable[..., object], given: dict[str, object]) -> dict[str, object]:
    """Something for each parameter that has no default; nobody comes to look at it."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: given.get(each.name) for each in parameters if each.default is each.empty}


@pytest.mark.parametrize("name", METHODS)
async def test_methods_of_a_repository(name: str, repo: Repository) -> None:
    method = getattr(repo, name)
    given = {"writer": repo.create_stream(OCI_LAYER), "contents": [], "data": b""}
    assert await goes_no_further(partial(method, **required(method, given)))


@pytest.mark.parametrize(("module", "name"), TWINS, ids=[name for _, name in TWINS])
async def test_functions_on_images_and_layers(module: ModuleType, name: str, repo: Repository) -> None:
    function = getattr(module, name)
    given: dict[str, object] = {"repo": repo, "diff_id": NOTHING, "manifest_digest": NOTHING, "name": "x"}
    assert await goes_no_further(partial(function, **required(function, given)))


async def nothing() -> AsyncIterator[bytes]:
    for piece in ():
        yield piece


async def test_importing_what_is_there(repo: Repository) -> None:
    layout = Path(__file__).parent.parent / "vectors" / "layouts" / "one"
    platform = oci.Platform("linux", "amd64")
    await oci.import_layer(repo, NOTHING, nothing())
    await oci.pull(repo, f"oci:{layout}", platform=platform)
    source = nothing()
    assert await goes_no_further(lambda: oci.import_layer(repo, NOTHING, source))
    assert await goes_no_further(lambda: oci.pull(repo, f"oci:{layout}", platform=platform))
    assert await goes_no_further(lambda: oci.repair(repo, []))


async def test_awaiting_what_is_done(repo: Repository) -> None:
    handle = repo.spawn_finalize_object_tmpfile(await repo.create_object_tmpfile_async(), 0)
    await handle
    assert await goes_no_further(handle._wait)
    assert await goes_no_further(lambda: repo.ensure_objects_async([]))
