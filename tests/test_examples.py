"""The examples, and the example of the README, run as they stand."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest

from composefs_async._zstd import zstd

ROOT = Path(__file__).parent.parent
LAYOUTS = Path(__file__).parent / "vectors/layouts"


def run(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, "-W", "error", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def example(name: str) -> Path:
    return ROOT / "examples" / f"{name}.py"


def blobs(layout: str) -> tuple[Path, str]:
    """The packed layer of an image of one layer, and its diff_id."""
    read = lambda digest: LAYOUTS / layout / "blobs/sha256" / digest.partition(":")[2]  # noqa: E731
    index = json.loads((LAYOUTS / layout / "index.json").read_text())
    manifest = json.loads(read(index["manifests"][0]["digest"]).read_text())
    config = json.loads(read(manifest["config"]["digest"]).read_text())
    return read(manifest["layers"][0]["digest"]), config["rootfs"]["diff_ids"][0]


def test_a_layer_is_imported_from_aiofiles(tmp_path: Path) -> None:
    layer, diff_id = blobs("one")
    assert run(example("import_aiofiles"), layer, diff_id, tmp_path / "r").startswith("1 objects stored")
    assert run(example("import_aiofiles"), layer, diff_id, tmp_path / "r").startswith("0 objects stored")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_an_image_is_brought_by_a_service(tmp_path: Path, loop: str) -> None:
    pytest.importorskip(loop)
    handler = partial(Quiet, directory=LAYOUTS / "basic")
    digest = json.loads((LAYOUTS / "basic/index.json").read_text())["manifests"][0]["digest"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            place = f"http://127.0.0.1:{server.server_port}"
            command = [example("import_service"), place, digest, tmp_path / "r", "app", loop]
            done = subprocess.run([sys.executable, "-W", "error", *command], capture_output=True, text=True, check=True)
        finally:
            server.shutdown()
    assert f"tagged app: {digest}" in done.stdout
    assert "/usr/share/sizes/070000" in run(example("layer_entries"), tmp_path / "r", "app")


def test_an_image_is_built_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/os-release").write_text("NAME=x\n")
    outputs = {run(example("build_image"), tmp_path / "tree", f"oci-archive:{tmp_path / name}") for name in "ab"}
    assert len(outputs) == 1
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_directory_is_stored_on_uvloop(tmp_path: Path) -> None:
    pytest.importorskip("uvloop")
    (tmp_path / "d").mkdir()
    for number in range(3):
        (tmp_path / "d" / str(number)).write_text(str(number % 2))
    assert run(example("bulk_uvloop"), tmp_path / "d", tmp_path / "r").startswith("3 files, 2 new objects")


def test_counters_are_exported_by_opentelemetry(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    (tmp_path / "d").mkdir()
    for name, content in (("a", "12345"), ("b", "123"), ("c", "123")):
        (tmp_path / "d" / name).write_text(content)
    exported = json.loads(run(example("metrics_opentelemetry"), tmp_path / "d", tmp_path / "r"))
    (scope,) = exported["resource_metrics"][0]["scope_metrics"]
    found = {each["name"]: (each["unit"], each["data"]["data_points"]) for each in scope["metrics"]}
    assert {name: (unit, points[0]["value"]) for name, (unit, points) in found.items()} == {
        "composefs.objects_stored": ("", 2),
        "composefs.objects_present": ("", 1),
        "composefs.objects_replaced": ("", 0),
        "composefs.bytes_written": ("By", 8),
        "composefs.flushes": ("", 1),
        "composefs.flush_requests": ("", 1),
    }
    assert all(each["attributes"] == {"composefs.repository": str(tmp_path / "r")} for _, (each,) in found.values())


def test_an_image_is_pulled_on_trio_and_its_files_are_listed(tmp_path: Path) -> None:
    output = run(example("pull_trio"), f"oci:{LAYOUTS / 'basic'}", tmp_path / "r")
    assert len(re.findall("objects, ", output)) == 2
    assert "tagged example: sha256:" in output
    assert "/usr/share/sizes/070000" in run(example("layer_entries"), tmp_path / "r", "example")


def test_a_damaged_repository_is_mended_from_another(tmp_path: Path) -> None:
    for name in ("damaged", "whole"):
        run(example("pull_trio"), f"oci:{LAYOUTS / 'basic'}", tmp_path / name)
    victim = max((tmp_path / "damaged/objects").glob("*/*"), key=lambda path: path.stat().st_size)
    victim.unlink()
    output = run(example("keep_healthy"), tmp_path / "damaged", tmp_path / "whole")
    assert "missing-object-ref" in output
    assert output.endswith("whole again\n0 objects removed, 0 bytes\n")
    assert victim.exists()


def test_the_example_of_the_readme_works_as_pasted(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "pasted.py").write_text(code)
    assert run(tmp_path / "pasted.py").startswith("b'more 0' is sha512:")


class Served(http.server.BaseHTTPRequestHandler):
    """As much of a registry as a pull needs, from an image directory."""

    layout: Path

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        entry = json.loads((self.layout / "index.json").read_text())["manifests"][0]
        what, which = self.path.rsplit("/", 2)[1:]
        digest = which if ":" in which else entry["digest"]
        path = self.layout / "blobs" / digest.replace(":", "/")
        content = path.read_bytes() if path.exists() and "/missing/" not in self.path else None
        asked = self.headers.get("Range")
        self.send_response(404 if content is None else 206 if asked else 200)
        if content is not None and asked:
            start, last = map(int, asked.removeprefix("bytes=").split("-"))
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            content = content[start : last + 1]
        if what == "manifests":
            self.send_header("Content-Type", entry["mediaType"])
            self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_many_images_are_pulled_by_a_service(tmp_path: Path, loop: str) -> None:
    pytest.importorskip(loop)
    handler = type("Handler", (Served,), {"layout": LAYOUTS / "one"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            names = [f"docker://127.0.0.1:{server.server_port}/{name}/x:1" for name in ("a", "b", "c", "missing")]
            command = [example("pull_service"), tmp_path / "r", *names, "--insecure", f"--loop={loop}"]
            done = subprocess.run(
                [sys.executable, "-W", "error", *command], capture_output=True, text=True, check=False
            )
        finally:
            server.shutdown()
    assert done.returncode == 1, done.stderr
    assert sorted(line.split(": ")[0] for line in done.stdout.splitlines()) == names
    assert "has no such thing" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_one_file_of_a_remote_image_is_printed(tmp_path: Path, loop: str) -> None:
    pytest.importorskip(loop)
    content = zstd.decompress((LAYOUTS.parent / "zstd_chunked/images.tar.zst").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path, filter="data")
    handler = type("Handler", (Served,), {"layout": tmp_path / "two"})
    command = [sys.executable, "-W", "error", example("remote_file"), "--insecure", f"--loop={loop}"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            place = f"docker://127.0.0.1:{server.server_port}/a/x:1"
            done = subprocess.run([*command, place, "/usr/lib/f1"], capture_output=True, check=True)
            other = subprocess.run([*command, place, "nothing"], capture_output=True, check=False, text=True)
        finally:
            server.shutdown()
    digest = "429bea488e39eca13edd3ce8ddaa2bdec3ec46d96281132ba72c3ecc90c05845"
    assert (len(done.stdout), hashlib.sha256(done.stdout).hexdigest()) == (30_000, digest)
    assert done.stderr.startswith(b"30014 of 1599008 bytes of sha256:")
    assert (other.returncode, other.stderr) == (1, f"nothing is in no layer of {place}\n")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_without_arguments_an_example_says_how_it_is_used(name: str) -> None:
    if name == "metrics_opentelemetry":
        pytest.importorskip("opentelemetry.sdk")
    if name in ("bulk_uvloop", "import_aiofiles"):
        pytest.importorskip(name.partition("_")[2])
    done = subprocess.run([sys.executable, "-W", "error", example(name)], capture_output=True, text=True, check=False)
    assert (done.returncode in (1, 2), done.stdout, "Traceback" in done.stderr) == (True, "", False)
    assert f"python examples/{name}.py" in done.stderr or f"usage: {name}.py" in done.stderr
