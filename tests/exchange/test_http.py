"""Stores behind web servers, which give no ranges, wrong ones, half answers, redirects or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.cli.exit_codes import exit_code
from composefs_async.errors import FetchError, StoreError
from composefs_async.exchange import fetch, open_store, publish
from composefs_async.exchange.backends.base import ReadOnlyStoreError
from composefs_async.exchange.store import run_program
from composefs_async.oci import Platform, pull
from composefs_async.repository import Repository

from .conftest import snapshot
from .webserver import WebServer, serving

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

LAYOUT = Path(__file__).parent.parent / "vectors/layouts/basic"
NAME = "team/basic:1"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published")

    async def work() -> None:
        async with (
            Repository.init_async(path / "repo", insecure=True) as repo,
            open_store(f"file://{path}/store") as store,
        ):
            await pull(repo, f"oci:{LAYOUT}", tag="basic", platform=Platform("linux", "amd64"))
            await store.init()
            await publish(repo, "basic", store, name=NAME)

    anyio.run(work)
    return path


@pytest.fixture
def web(published: Path) -> Iterator[WebServer]:
    with serving(published / "store") as served:
        yield served


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("composefs_async.exchange.transfers.pause", waited.append)
    monkeypatch.setattr("composefs_async.exchange.pacing.retrying.__kwdefaults__", {"wait": waited.append})
    return waited


async def fetched(tmp_path: Path, *urls: str, **options: Any) -> Any:
    async with Repository.init_async(tmp_path / "target", insecure=True, ensure=True) as target:
        stores = [await open_store(url) for url in urls]
        try:
            return await fetch(target, stores, NAME, **options)
        finally:
            for store in stores:
                await store.close()


@pytest.mark.usefixtures("no_blocking")
async def test_an_image_comes_from_a_web_server(tmp_path: Path, published: Path, web: WebServer) -> None:
    got = await fetched(tmp_path, web.url, tag="basic")
    assert snapshot(tmp_path / "target") == snapshot(published / "repo")
    assert len(web.requests) == got.requests
    assert web.requests[1] == ("GET", "/store/refs/team%252Fbasic%3A1", "")
    again = await fetched(tmp_path, web.url, tag="basic")
    assert again.requests == 2


async def test_a_server_without_ranges_gives_the_whole(tmp_path: Path, published: Path, web: WebServer) -> None:
    web.ranges = False
    await fetched(tmp_path, web.url, tag="basic")
    assert snapshot(tmp_path / "target") == snapshot(published / "repo")
    assert sum(bool(asked) for _, _, asked in web.requests) == 1


async def test_another_range_than_was_asked_for_is_not_taken(tmp_path: Path, published: Path, web: WebServer) -> None:
    web.shift = 5
    await fetched(tmp_path, web.url, tag="basic")
    assert snapshot(tmp_path / "target") == snapshot(published / "repo")


async def test_answers_that_break_off_are_asked_for_again(
    tmp_path: Path, published: Path, web: WebServer, no_waiting: list[float]
) -> None:
    cuts = iter([True, False] * 100)
    web.cut = lambda path: "blobs" in path and next(cuts)
    await fetched(tmp_path, web.url, tag="basic")
    assert snapshot(tmp_path / "target") == snapshot(published / "repo")
    assert no_waiting


async def test_a_busy_server_is_given_the_time_that_it_wants(
    tmp_path: Path, published: Path, web: WebServer, no_waiting: list[float]
) -> None:
    answers = iter([(503, {"Retry-After": "3"}), None] * 100)
    web.refuse = lambda path: next(answers)
    await fetched(tmp_path, web.url, tag="basic")
    assert snapshot(tmp_path / "target") == snapshot(published / "repo")
    assert set(no_waiting) == {3.0}


async def test_redirects_are_followed_and_no_more_than_a_few(tmp_path: Path, published: Path, web: WebServer) -> None:
    with serving(published / "store") as other:
        web.refuse = lambda path: (302, {"Location": f"http://127.0.0.1:{other.port}{path}"})
        await fetched(tmp_path, web.url, tag="basic")
        assert snapshot(tmp_path / "target") == snapshot(published / "repo")
    web.refuse = lambda path: (302, {"Location": path})
    with pytest.raises(FetchError, match="redirects"):
        await fetched(tmp_path, web.url, tag="basic")


async def test_what_is_not_there_comes_from_a_mirror(tmp_path: Path, published: Path, web: WebServer) -> None:
    web.refuse = lambda path: (404, {}) if "blobs" in path else None
    with pytest.raises(FetchError) as caught:
        await fetched(tmp_path, web.url)
    assert exit_code(caught.value) == 9
    with serving(published / "store") as mirror:
        got = await fetched(tmp_path, web.url, mirror.url, tag="basic")
        assert list(got.failed_sources) == [web.url]
    assert snapshot(tmp_path / "target") == snapshot(published / "repo")


async def test_a_server_that_is_not_there(tmp_path: Path, no_waiting: list[float]) -> None:
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9") as caught:
        await fetched(tmp_path, "http://127.0.0.1:9/store")
    assert exit_code(caught.value) == 9
    assert len(no_waiting) == 4


async def test_it_can_only_be_read(web: WebServer) -> None:
    async with open_store(web.url) as store:
        with pytest.raises(ReadOnlyStoreError, match="cannot be listed"):
            _ = [ref async for ref in store.refs()]
        with pytest.raises(ReadOnlyStoreError, match="cannot be written"):
            await run_program(store, one_put())
        found = await store.ref(NAME)
        assert found is not None


def one_put() -> Any:
    from composefs_async.exchange.protocol import Put

    yield Put("x", b"")


@pytest.mark.parametrize(
    "url", ["http://user:password@host/x", "http://host/x?token=secret", "ftp://host/x", "file://x/y"]
)
async def test_urls_that_cannot_be_are_refused_without_secrets(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        await open_store(url)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)
