"""A web server of this process for the files of a directory, which misbehaves as it is told."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

__all__ = ["WebServer", "serving"]


@dataclass
class WebServer:
    """What is served, and how."""

    root: Path
    port: int = 0
    requests: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """Method, path and range of each."""
    ranges: bool = True
    """Answer a request for a range with it, not with the whole."""
    shift: int = 0
    """Answer with a range that begins so many bytes later."""
    cut: Callable[[str], bool] = lambda path: False
    """Whether to close the connection in the middle of an answer."""
    refuse: Callable[[str], tuple[int, dict[str, str]] | None] = lambda path: None
    """A status and headers in the place of an answer."""
    delay: float = 0.0
    """Seconds before each answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/store"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: WebServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        served = self.served
        wanted = self.headers.get("Range", "")
        served.requests.append((self.command, self.path, wanted))
        if served.delay:
            time.sleep(served.delay)
        refused = served.refuse(self.path)
        if refused is not None:
            self._head(refused[0], {**refused[1], "Content-Length": "0"})
            return
        file = served.root / _file_name(self.path)
        if not file.is_file():
            self._head(404, {"Content-Length": "0"})
            return
        data = file.read_bytes()
        status, headers = 200, {"Last-Modified": self.date_time_string(int(file.stat().st_mtime)), "ETag": '"x"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if match and served.ranges:
            start, end = int(match[1]) + served.shift, int(match[2] or len(data) - 1)
            if start >= len(data):
                self._head(416, {"Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"
            data, status = data[start : end + 1], 206
        self._head(status, {**headers, "Content-Length": str(len(data))})
        if self.command == "GET":
            cut = served.cut(self.path)
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection |= cut

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _file_name(path: str) -> str:
    """The file of a path: keys have escapes of their own."""
    return unquote(path.removeprefix("/store/"))


@contextmanager
def serving(root: Path) -> Iterator[WebServer]:
    """Serve a directory at ``/store`` for the time of the block."""
    served = WebServer(root)
    handler = type("Handler", (_Handler,), {"served": served})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
