"""Images of a daemon: what is asked, in which forms it answers, and what it may answer wrongly."""

from __future__ import annotations

import json
import os
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from composefs_async.errors import (
    ComposefsError,
    DigestMismatchError,
    ImageNotFoundError,
    OciError,
    TarError,
    TransportError,
)
from composefs_async.oci import Platform, pull
from composefs_async.repository import Repository

from ..sources_golden import CONFIG, DIFF_IDS, MADE, unpack

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

QUOTED = CONFIG.replace(":", "%3A")
SHORT = Path("/tmp")
"""Paths of sockets have at most 107 bytes (unix(7))."""


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = False


class Daemon(BaseHTTPRequestHandler):
    """What Docker answers; the tests change the attributes."""

    protocol_version = "HTTP/1.1"
    archive = b""
    described: Any = None
    form = "chunked"
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "absent" in self.path:
            self._answer(404, b'{"message":"reference does not exist"}', "application/json")
        elif "broken" in self.path:
            self._answer(500, b"no JSON at all", "text/plain")
        elif self.path.endswith("/json"):
            self._answer(200, json.dumps(self.described).encode(), "application/json")
        else:
            self._answer(200, self.archive, "application/x-tar", self.form)

    def _answer(self, status: int, body: bytes, kind: str, form: str = "length") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        if form == "length":
            self.send_header("Content-Length", str(len(body)))
        elif form in ("chunked", "cut"):
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if form in ("chunked", "cut"):
            for at in range(0, len(body), 10_007):
                piece = body[at : at + 10_007]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if form == "chunked":
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(body)


@contextmanager
def running(**attributes: Any) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Daemon,), attributes | {"asked": asked})
    path = SHORT / f"composefs-async-daemon-{os.getpid()}"
    with Server(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield str(path), asked
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (unpack(tmp_path_factory.mktemp("golden"), "archives") / "docker20-api.tar").read_bytes()


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", insecure=True) as opened:
        yield opened


def described(**changes: Any) -> dict[str, Any]:
    return {"Id": CONFIG, "RootFS": {"Type": "layers", "Layers": DIFF_IDS}} | changes


@pytest.mark.parametrize("form", ["chunked", "length", "until it closes"])
async def test_image_of_a_daemon(archive: bytes, repo: Repository, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    with running(archive=archive, described=described(), form=form) as (path, asked):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        result = await pull(repo, "docker-daemon:localhost/golden:v1", tag="it")
        assert (result.manifest_digest, result.manifest_made, result.stats.layers_imported) == (MADE, True, 3)
        again = await pull(repo, f"docker-daemon:{CONFIG}", tag="it", platform=Platform("linux", "amd64"))
    assert (again.stats.layers_imported, again.stats.layers_present) == (0, 3)
    assert asked == [
        "/images/localhost%2Fgolden%3Av1/json",
        "/images/localhost%2Fgolden%3Av1/get",
        f"/images/{QUOTED}/json",
        f"/images/{QUOTED}/get?platform=%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22amd64%22%7D",
    ]


async def test_id_without_an_algorithm_is_podmans(
    archive: bytes, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(archive=archive, described=described(Id=CONFIG.partition(":")[2])) as (path, _):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        assert (await pull(repo, "docker-daemon:golden:v1", tag="it")).config_digest == CONFIG


@pytest.mark.parametrize(
    ("name", "changes", "error", "text"),
    [
        ("absent:1", {}, ImageNotFoundError, "reference does not exist"),
        ("broken:1", {}, TransportError, "the daemon answered 500"),
        ("a:1", {"form": "cut"}, TransportError, "cut off or damaged"),
        ("a:1", {"described": described(Id="sha256:" + 64 * "0")}, DigestMismatchError, "config of docker-daemon"),
        ("a:1", {"described": described(Id="nonsense")}, OciError, "no id of an image"),
        ("a:1", {"described": []}, OciError, "where an object belongs"),
        ("a:1", {"archive": b""}, ComposefsError, "no tar archive"),
        ("a:1", {"archive": b"<html>" + bytes(600)}, TarError, "cut off|no tar|not a number|checksum"),
    ],
)
async def test_what_a_daemon_answers_wrongly(
    archive: bytes,
    repo: Repository,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    with running(**({"archive": archive, "described": described()} | changes)) as (path, _):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        with pytest.raises(error, match=text):
            await pull(repo, f"docker-daemon:{name}", tag="it")
    assert repo.has_stream(f"oci-config-{CONFIG}") is None


async def test_no_daemon(repo: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    with pytest.raises(TransportError, match="none"):
        await pull(repo, "docker-daemon:a:1")
    monkeypatch.setenv("DOCKER_HOST", "tcp://localhost:2375")
    with pytest.raises(TransportError, match="only unix:// is supported"):
        await pull(repo, "docker-daemon:a:1")


async def test_server_that_speaks_something_else(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Other(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")

    path = SHORT / f"composefs-async-daemon-{os.getpid()}"
    with Server(str(path), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        with pytest.raises(TransportError, match="no HTTP server"):
            await pull(repo, "docker-daemon:a:1")
        thread.join()
        path.unlink()
