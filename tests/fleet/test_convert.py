"""Many images into a store: each layer once, images equal to local imports, whoever runs the steps and dies of it."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.errors import OciError
from composefs_async.exchange import fetch, open_store
from composefs_async.fleet import Converted, Engine, ThreadEngine, convert, in_shard, status, store_name
from composefs_async.oci import pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.repository import Repository

from ..exchange.conftest import PLATFORM, archive, noise, snapshot

LAYERS = [{f"l{at}/a": noise(3000, at), f"l{at}/b": noise(500, at + 50)} for at in range(6)]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images over six layers, and one that is damaged."""
    writer = OciLayoutWriter(tmp_path_factory.mktemp("fleet") / "layout")
    layers = [writer.add_layer(io.BytesIO(archive(files))) for files in LAYERS]
    for number in range(12):
        some = [layers[number % 6], layers[(number + 1) % 6], layers[(number * 5) % 6]]
        writer.add_image(some, tag=f"i{number}", platform=PLATFORM)
    broken = writer.add_layer(io.BytesIO(archive({"x": noise(900, 99)})))
    writer.add_image([broken], tag="broken", platform=PLATFORM)
    (writer.directory / "blobs" / broken.descriptor.digest.replace(":", "/")).write_bytes(b"damaged")
    return writer.directory


def references(layout: Path, *tags: str) -> list[str]:
    return [f"oci:{layout}:{tag}" for tag in (tags or [f"i{number}" for number in range(12)])]


def name(reference: str) -> str:
    return reference.rpartition(":")[2]


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"file://{tmp_path}/store"

    async def work() -> None:
        async with open_store(url) as store:
            await store.init()

    anyio.run(work)
    return url


async def converted(wanted: list[str], url: str, **options: Any) -> list[Converted]:
    async with aclosing(convert(wanted, url, platform=PLATFORM, name=name, **options)) as images:
        return [image async for image in images]


class Counting:
    """Counts what an engine is given, and fails steps as it is told."""

    def __init__(self, engine: Engine, fail: Callable[[str, int], bool] = lambda key, number: False) -> None:
        self._engine, self._fail = engine, fail
        self.keys: Counter[str] = Counter()

    def submit(self, key: str, function: Callable[..., Any], /, *args: object, retries: int = 3) -> Any:
        self.keys[key] += 1
        return self._engine.submit(key, function, *args, retries=retries)


async def check_equal(layout: Path, url: str, tmp_path: Path, tags: list[str]) -> None:
    """Images from the store are those of local imports, down to the last byte."""
    async with (
        Repository.init_async(tmp_path / "local", insecure=True) as local,
        Repository.init_async(tmp_path / "fetched", insecure=True) as target,
        open_store(url) as store,
    ):
        for tag in tags:
            result = await pull(local, f"oci:{layout}:{tag}", tag=tag, platform=PLATFORM)
            await fetch(target, store, tag, expect=result.manifest_digest)
    assert snapshot(tmp_path / "fetched") == snapshot(tmp_path / "local")


def times(url: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(url.removeprefix("file://")).rglob("refs/*")}


def published_layers(url: str) -> int:
    return sum(name.startswith("layers") for name in os.listdir(f"{url.removeprefix('file://')}/refs"))


@pytest.mark.anyio
async def test_images_are_converted_and_each_layer_once(layout: Path, url: str, tmp_path: Path) -> None:
    done = await converted(references(layout), url, engine=ThreadEngine(3))
    assert sorted(image.reference for image in done) == sorted(references(layout))
    assert {image.error for image in done} == {None}
    assert sum(image.layers_converted for image in done) == 6
    assert sum(image.layers_converted + image.layers_shared for image in done) == sum(
        len({number % 6, (number + 1) % 6, number * 5 % 6}) for number in range(12)
    )
    assert published_layers(url) == 6
    await check_equal(layout, url, tmp_path, ["i0", "i3", "i7"])


@pytest.mark.anyio
async def test_a_second_run_finds_all_done(layout: Path, url: str) -> None:
    first = await converted(references(layout, "i1", "i2"), url)
    before = times(url)
    again = await converted(references(layout, "i1", "i2"), url)
    assert sorted((image.reference, image.image_id) for image in again) == sorted(
        (image.reference, image.image_id) for image in first
    )
    assert sum(image.layers_converted for image in again) == 0
    assert times(url) == before


@pytest.mark.anyio
async def test_one_image_that_cannot_be_does_not_stop_the_others(layout: Path, url: str) -> None:
    wanted = [*references(layout, "broken", "i4"), "oci:/nowhere:x", "nonsense"]
    done = {image.reference: image for image in await converted(wanted, url)}
    assert {name(reference): image.error is None for reference, image in done.items()} == {
        "broken": False,
        "i4": True,
        "x": False,
        "nonsense": False,
    }
    assert str(done[wanted[0]].error).startswith("OciError: blob sha256:")
    assert "\n" not in str(done[wanted[0]].error)


@pytest.mark.anyio
async def test_shards_divide_the_work_and_share_the_layers(layout: Path, url: str, tmp_path: Path) -> None:
    done = []
    for number in range(3):
        done += await converted(references(layout), url, shard=(number, 3))
    assert sorted(image.reference for image in done) == sorted(references(layout))
    assert sum(image.layers_converted for image in done) == 6
    found = [each async for each in status([*references(layout), "docker://host/other"], url, name=name)]
    assert [each.manifest_digest is not None for each in found] == [True] * 12 + [False]


@pytest.mark.anyio
async def test_a_run_that_is_left_early_ends_its_steps(layout: Path, url: str) -> None:
    async with aclosing(convert(references(layout), url, platform=PLATFORM, name=name, in_flight=2)) as images:
        first = await anext(images)
    assert first.error is None


@pytest.mark.anyio
async def test_equal_keys_run_once_and_failures_again() -> None:
    calls: list[str] = []
    gate = ThreadEngine(4)

    def work(text: str) -> str:
        calls.append(text)
        if len(calls) < 3:
            raise OSError("may pass")
        return text

    results: list[str] = []

    async def ask() -> None:
        results.append(await gate.submit("key", work, "x"))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
    assert (results, calls) == (["x"] * 5, ["x"] * 3)


@pytest.mark.anyio
async def test_errors_that_are_final_are_not_tried_again() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise OciError("x", "it is no image")

    with pytest.raises(OciError):
        await ThreadEngine(1).submit("key", work)
    assert len(calls) == 1


def test_shards_have_each_reference_once() -> None:
    for reference in ("a", "b", "docker://c/d:1"):
        assert sum(in_shard(reference, (number, 7)) for number in range(7)) == 1


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("docker://docker.io/library/x:1", "docker.io/library/x:1"), ("oci:/srv/x:1", "srv/x:1"), ("x", "x")],
)
def test_names_are_those_of_references_without_transport(reference: str, expected: str) -> None:
    assert store_name(reference) == expected


# -- Dask --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two worker processes."""
    distributed = pytest.importorskip("distributed")
    import dask

    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"distributed.scheduler.allowed-failures": 10, "distributed.admin.log-length": 10}),
    ):
        patch.chdir(tmp_path_factory.mktemp("dask"))
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as running:
            yield running


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_cluster_converts_although_a_worker_dies(cluster: Any, layout: Path, url: str, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    from composefs_async.fleet.dask import DaskEngine

    with distributed.Client(cluster) as client:
        killed: list[int] = []
        engine = Counting(DaskEngine(client))

        async def work() -> list[Converted]:
            done = []
            async with aclosing(
                convert(references(layout), url, engine=engine, platform=PLATFORM, name=name)
            ) as images:
                async for image in images:
                    done.append(image)
                    if not killed:
                        pids = await anyio.to_thread.run_sync(lambda: client.run(os.getpid))
                        killed.append(next(iter(pids.values())))
                        os.kill(killed[0], signal.SIGKILL)
            return done

        done = anyio.run(work)
    assert sorted((image.reference, image.error) for image in done) == [
        (reference, None) for reference in sorted(references(layout))
    ]
    assert published_layers(url) == 6
    assert len(engine.keys) == 12 + 6 + 12
    anyio.run(check_equal, layout, url, tmp_path, ["i2", "i5"])
