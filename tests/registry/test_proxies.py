"""Requests through a proxy: by CONNECT to registries with TLS, as they are to others; its password is its alone."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
import trustme
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from composefs_async import Repository, oci
from composefs_async._aio.groups import single_error
from composefs_async.errors import TransportError
from composefs_async.registry.access import Access
from composefs_async.testing.http import FaultyServer
from composefs_async.testing.registry import Answer, FakeRegistry, Seen

from .conftest import QUICK, SmallImage

pytestmark = pytest.mark.anyio

NAME = "registry.example"


@asynccontextmanager
async def tunnel(target: str, heads: list[str]) -> AsyncIterator[str]:
    """A proxy that knows CONNECT alone and leads everybody to *target*."""

    async def serve(client: SocketStream) -> None:
        async with client:
            buffered = BufferedByteReceiveStream(client)
            heads.append((await buffered.receive_until(b"\r\n\r\n", 65536)).decode())
            host, _, port = target.partition(":")
            async with await anyio.connect_tcp(host, int(port)) as server, anyio.create_task_group() as tasks:
                await client.send(b"HTTP/1.1 200 Connected\r\n\r\n")
                tasks.start_soon(_relay, client, server)
                await _relay(server, client)
                tasks.cancel_scope.cancel()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener:
        with single_error():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, serve)
                yield f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
                tasks.cancel_scope.cancel()


async def _relay(source: SocketStream, target: SocketStream) -> None:
    try:
        async for data in source:
            await target.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass


def _through(access: Access, **variables: str) -> Access:
    return replace(access, environ={**(access.environ or {}), **variables})


async def test_a_registry_with_tls_is_reached_by_connect(
    repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    authority, heads, registry = trustme.CA(), list[str](), FakeRegistry()
    image.put(registry)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    strict = replace(access, tls_verify=True, cert_dir=tmp_path)
    async with registry.serving(tls=context) as host, tunnel(host, heads) as proxy:
        through = _through(strict, HTTPS_PROXY=f"http://user:s3cr3t@{proxy}")
        result = await oci.pull(repo, f"docker://{NAME}/a/b:1", access=through, transfer=QUICK)
    assert result.manifest_digest == image.digest
    assert heads[0].startswith(f"CONNECT {NAME}:443 ")
    assert "Proxy-Authorization: Basic" in heads[0]
    assert all("proxy-authorization" not in seen.headers for seen in registry.seen)


async def test_a_registry_without_tls_is_asked_for_through_the_proxy(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    registry = FakeRegistry()
    image.put(registry)

    async def forward(seen: Seen) -> Answer:
        assert seen.target.startswith(f"http://{NAME}/v2/")
        return await registry.answer(replace(seen, target=seen.target.removeprefix(f"http://{NAME}")))

    proxy = FaultyServer(forward)
    async with proxy.serving() as address:
        through = _through(access, http_proxy=f"http://{address}", https_proxy="http://127.0.0.1:9")
        result = await oci.pull(repo, f"docker://{NAME}/a/b:1", access=through, transfer=QUICK)
    assert result.manifest_digest == image.digest


async def test_loopback_is_reached_directly_and_a_bad_proxy_is_named(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    async with registry.serving() as host:
        away = _through(access, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
        await oci.pull(repo, f"docker://{host}/a/b:1", access=away, transfer=QUICK)
    bad = _through(replace(access, tls_verify=True), https_proxy="ftp://127.0.0.1:9")
    with pytest.raises(TransportError, match=r"the proxy for registry\.example is not one of"):
        await oci.pull(repo, f"docker://{NAME}/a/b:1", access=bad, transfer=QUICK)
