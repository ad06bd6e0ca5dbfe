"""Object stores that ignore conditions, know none, answer 409, lose answers or want patience."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from composefs_async.errors import ConditionalWritesError, UnknownOutcomeError
from composefs_async.exchange import fetch, publish
from composefs_async.exchange.backends.base import PreconditionError
from composefs_async.exchange.backends.objectstore import ObjectStoreBackend
from composefs_async.exchange.store import Store

from .conftest import FILES, Images
from .test_publish_fetch import run

pytest.importorskip("obstore")


@dataclass
class BadS3:
    """A bucket in memory; *answer* may take a request over."""

    objects: dict[str, bytes] = field(default_factory=dict[str, bytes])
    conditions: bool = True
    answer: Callable[[str, str], int | None] = lambda method, key: None
    """A status in the place of an answer; 0 closes the connection after the work was done."""
    endpoint: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: BadS3

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix("/bucket").removeprefix("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = self.bucket.answer(self.command, key)
        if status:
            self._say(status)
            return
        found = self.bucket.objects.get(key)
        if self.command == "PUT":
            self._put(key, body, found, silent=status == 0)
        elif self.command == "DELETE":
            self.bucket.objects.pop(key, None)
            self._say(204)
        elif "list-type" in parts.query:
            self._list(parse_qs(parts.query).get("prefix", [""])[0])
        elif found is None:
            self._say(404)
        else:
            self._get(found)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _serve  # noqa: N815

    def _put(self, key: str, body: bytes, found: bytes | None, *, silent: bool) -> None:
        wanted = self.headers.get("If-Match")
        taken = self.headers.get("If-None-Match") == "*" and found is not None
        if self.bucket.conditions and (taken or (wanted and (found is None or wanted != _etag(found)))):
            self._say(412)
            return
        self.bucket.objects[key] = body
        if silent:
            self.close_connection = True
        else:
            self._say(200, ETag=_etag(body))

    def _get(self, data: bytes) -> None:
        headers = {"ETag": _etag(data), "Last-Modified": "Tue, 01 Dec 2026 00:00:00 GMT"}
        wanted = self.headers.get("Range")
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            last = min(int(end or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(data)}"
            data = data[int(start) : last + 1]
        self._say(206 if wanted else 200, data, **headers)

    def _list(self, prefix: str) -> None:
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-12-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(_etag(data))}</ETag><Size>{len(data)}</Size></Contents>"
            for key, data in sorted(self.bucket.objects.items())
            if key.startswith(prefix)
        )
        self._say(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[BadS3]:
    for variable in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{variable}", "x")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr("composefs_async.exchange.pacing.retrying.__kwdefaults__", {"wait": lambda seconds: None})
    monkeypatch.setattr("composefs_async.exchange.transfers.pause", lambda seconds: None)
    made = BadS3()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": made}))
    server.daemon_threads = True
    made.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def opened(bucket: BadS3) -> Any:
    return ObjectStoreBackend("s3://bucket/store", bucket.endpoint)


def test_a_store_that_ignores_conditions_is_refused_and_serves_one_writer(bucket: BadS3, images: Images) -> None:
    bucket.conditions = False
    with pytest.raises(ConditionalWritesError, match="creates what is there"):
        run(Store(opened(bucket)).init)
    assert bucket.objects == {}
    repo, target, store = images.repository(), images.repository(), Store(opened(bucket))
    images.add(repo, "image", FILES)
    assert run(store.init, single_writer=True)[0].cas == "none"
    run(publish, repo, "image", store)
    run(fetch, target, store, "image")
    assert target.fsck().ok


@pytest.mark.parametrize("status", [400, 501])
def test_a_store_that_knows_no_conditions_is_refused(bucket: BadS3, status: int) -> None:
    bucket.answer = lambda method, key: status if method == "PUT" else None
    with pytest.raises(ConditionalWritesError):
        run(Store(opened(bucket)).init)
    assert bucket.objects == {}


def test_409_means_that_another_write_is_under_way(bucket: BadS3) -> None:
    bucket.answer = lambda method, key: 409
    with pytest.raises(PreconditionError, match="change"):
        opened(bucket).swap("refs/a", b"1", None)


@pytest.mark.parametrize("status", [0, 500, 503])
def test_an_answer_that_is_lost_leaves_the_outcome_open(bucket: BadS3, status: int) -> None:
    bucket.answer = lambda method, key: status
    with pytest.raises(UnknownOutcomeError):
        opened(bucket).swap("refs/a", b"1", None)
    assert (bucket.objects != {}) == (status == 0)


def test_publishing_finds_out_what_became_of_a_lost_answer(bucket: BadS3, images: Images) -> None:
    repo, target, store = images.repository(), images.repository(), Store(opened(bucket))
    images.add(repo, "image", FILES)
    run(store.init)
    lost = iter([0])
    bucket.answer = lambda method, key: next(lost, None) if method == "PUT" and "refs/" in key else None
    run(publish, repo, "image", store)
    run(fetch, target, store, "image")
    assert target.fsck().ok


def test_a_storm_of_503_is_borne(bucket: BadS3, images: Images) -> None:
    repo, target, store = images.repository(), images.repository(), Store(opened(bucket))
    images.add(repo, "image", FILES)
    run(store.init)
    count = [0]

    def storm(method: str, key: str) -> int | None:
        count[0] += 1
        return 503 if count[0] % 3 == 0 and not (method == "PUT" and "refs/" in key) else None

    bucket.answer = storm
    run(publish, repo, "image", store)
    run(fetch, target, store, "image")
    assert target.fsck().ok
