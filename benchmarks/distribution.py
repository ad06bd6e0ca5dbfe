"""Stores: images to and from S3, beside programs that move the same files one by one; and how costs grow.

    python benchmarks/distribution.py transfers A --dir /dev/shm     # versitygw or gofakes3 on this machine
    python benchmarks/distribution.py transfers A --delay 0.03       # behind a proxy with 30 ms round trip
    python benchmarks/distribution.py scale                          # 10,000 images, 10 million objects: tables only

Commands are timed from their start to their end, each once and in one run; read ratios, not seconds.  Peers are run
if they are on PATH: rclone and aws with the repository's objects, skopeo and cfsctl from a registry.  ``changed`` is
the image with 5 % of its files changed.  The proxy is of Python, and delays either direction by half of the round trip.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from imports import OURS, run
from inputs import DEFAULT_CACHE, Input, make_input
from provenance import print_provenance, provenance

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.exchange import fetch, open_store
from composefs_async.exchange.backends.directory import DirectoryStore
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.condemned import Description
from composefs_async.exchange.documents import (
    PACK_TYPE,
    TABLE_TYPE,
    Config,
    Descriptor,
    blob_key,
    build_manifest,
    digest_of,
    encode_ref,
    ref_key,
)
from composefs_async.exchange.gc import collect
from composefs_async.exchange.plan import Base, choose_reuse, plan_ranges
from composefs_async.exchange.protocol import run as run_program
from composefs_async.exchange.table import Entry, decode_table, encode_table
from composefs_async.oci import Platform
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.sources import OciLayoutSource
from composefs_async.repository import Repository

MIB = 1 << 20
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
CHANGED = 0.05


@dataclass
class Row:
    """One command."""

    what: str
    program: str
    seconds: float
    cpu: float
    rss: int
    requests: int | None = None
    moved: int | None = None
    """Bytes."""


LAUNCHER = """
import json, os, sys, time
begun = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - begun
with open(sys.argv[1], "w") as file:
    json.dump([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024], file)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""
"""Runs a command from a small process: memory of whoever forks counts as that of the child."""


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float, int]:
    """Seconds, seconds of CPU, and peak memory of a command."""
    without = {key: value for key, value in os.environ.items() if key != "AWS_CA_BUNDLE"}
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(out), *command]
        done = subprocess.run(launcher, env=without | environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        seconds, cpu, rss = json.loads(out.read_text())
        return seconds, cpu, rss


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list[Row])

    def add(self, what: str, program: str, command: list[str], environment: dict[str, str], **more: Any) -> Row:
        row = Row(what, program, *measured(command, environment), **more)
        self.rows.append(row)
        print(self.line(row), flush=True)
        return row

    def line(self, row: Row) -> str:
        requests = "" if row.requests is None else f"{row.requests:7} requests"
        moved = "" if row.moved is None else f"{row.moved / MIB:9.1f} MiB"
        times = f"{row.seconds:8.2f} s {row.cpu:8.2f} s CPU {row.rss / MIB:7.0f} MiB"
        return f"{row.what:28} {row.program:10} {times} {requests} {moved}"


# -- servers -----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[tuple[str, int]]:
    """versitygw, or gofakes3 where that is all there is; gives name and port."""
    port = free_port()
    (directory / "bucket").mkdir(parents=True)
    address = f"127.0.0.1:{port}"
    commands = {
        "versitygw": [
            *("versitygw", "--access", "key", "--secret", "secret", "--port", address, "--region", "us-east-1"),
            *("posix", str(directory)),
        ],
        "gofakes3": ["gofakes3", "-host", address, "-backend", "mem", "-initialbucket", "bucket"],
    }
    name = next((name for name in commands if shutil.which(name)), None)
    if name is None:
        sys.exit("versitygw or gofakes3 must be on PATH")
    with subprocess.Popen(commands[name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            yield name, port
        finally:
            process.terminate()


@contextlib.contextmanager
def proxy(port: int, delay: float) -> Iterator[int]:
    """Forward TCP with a round trip of *delay* seconds; gives the port."""
    if not delay:
        yield port
        return
    ready, loop = threading.Event(), asyncio.new_event_loop()
    found: list[int] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await reader.read(256 << 10):
                loop.call_later(delay / 2, writer.write, data)
        loop.call_later(delay / 2 + 0.01, writer.close)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay)  # the handshake
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    async def serve() -> None:
        server = await asyncio.start_server(client, "127.0.0.1", 0)
        found.append(server.sockets[0].getsockname()[1])
        ready.set()

    def main() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(serve())
        loop.run_forever()

    threading.Thread(target=main, daemon=True).start()
    ready.wait()
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)


# -- inputs ------------------------------------------------------------------------------------


def changed_input(given: Input, directory: Path) -> str:
    """The image with 5 % of its files changed, as a reference; made once."""
    if not directory.exists():
        partial_directory = directory.with_suffix(".partial")
        shutil.rmtree(partial_directory, ignore_errors=True)
        writer = OciLayoutWriter(partial_directory)
        layer = anyio.run(_only_layer, given)
        rnd = random.Random(1)
        with (
            writer.layer("zstd") as sink,
            gzip.open(layer) as packed,
            tarfile.open(fileobj=packed, mode="r|") as old,
            tarfile.open(fileobj=_Sink(sink), mode="w|") as new,  # type: ignore[arg-type]
        ):
            for member in old:
                _copy_member(old, new, member, rnd.random() < CHANGED)
        writer.add_image([sink.layer], tag="changed", platform=Platform("linux", "amd64"))
        partial_directory.rename(directory)
    return f"oci:{directory}:changed"


class _Sink:
    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def write(self, data: bytes) -> int:
        self._sink.write(data)
        return len(data)


def _copy_member(old: tarfile.TarFile, new: tarfile.TarFile, member: tarfile.TarInfo, change: bool) -> None:
    if not member.isreg():
        new.addfile(member)
        return
    source = old.extractfile(member)
    content = source.read() if source else b""
    if change and content:
        content = content[:-1] + bytes([content[-1] ^ 1])
    new.addfile(member, io.BytesIO(content))


async def _only_layer(given: Input) -> Path:
    image = await OciLayoutSource(given.path).resolve(tag=None, digest=None, platform=Platform("linux", "amd64"))
    return Path(given.path) / "blobs" / image.layers[0].descriptor.digest.replace(":", "/")


# -- transfers ---------------------------------------------------------------------------------


def ours(repo: Path, *arguments: object) -> list[str]:
    return [*OURS, "--repo", str(repo), *map(str, arguments)]


def counted(table: Table, what: str, command: list[str], environment: dict[str, str], moved: str) -> dict[str, Any]:
    """Run one of our commands, with its own count of requests and bytes."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        script = ["sh", "-c", 'exec "$@" > "$0"', str(out), *command, "--json", "--progress", "none"]
        row = table.add(what, "ours", script, environment)
        found: dict[str, Any] = json.loads(out.read_bytes())
    row.requests, row.moved = found["requests"], found[moved]
    print(f"{'':28} {'':10} {row.requests} requests, {row.moved / MIB:.1f} MiB", flush=True)
    return found


def new_repository(path: Path) -> Path:
    Repository.init(path, insecure=True).close()
    return path


def transfers(given: Input, place: Path, delay: float, peers: bool, cache: Path) -> Table:
    table = Table()
    changed = changed_input(given, cache / f"{given.name}-changed-{Path(given.path).name}")
    source = new_repository(place / "source")
    with s3_server(place / "s3") as (name, port), proxy(port, delay) as near:
        endpoint = f"http://127.0.0.1:{near}"
        print(f"{given}; {name}{f' behind {delay * 1000:.0f} ms' if delay else ''}")
        environment = dict(KEYS)
        url, options = "s3://bucket/store", ("--endpoint", endpoint)
        platform = ("--platform", "linux/amd64")
        table.add("pull from disk", "ours", ours(source, "oci", "pull", given.reference, "a", *platform), {})
        run(ours(source, "oci", "pull", changed, "changed", *platform), {})
        run([*OURS, "store", "init", url, *options], environment)
        counted(table, "publish", ours(source, "publish", "a", url, "--name", "x", *options), environment, "bytes_sent")
        again = ours(source, "publish", "a", url, "--name", "x", *options)
        counted(table, "publish unchanged", again, environment, "bytes_sent")
        target = new_repository(place / "target")
        counted(table, "fetch", ours(target, "fetch", url, "x", *options), environment, "bytes_received")
        again = ours(target, "fetch", url, "x", *options)
        counted(table, "fetch unchanged", again, environment, "bytes_received")
        update = ours(source, "publish", "changed", url, "--name", "x", *options)
        counted(table, "publish changed", update, environment, "bytes_sent")
        counted(table, "fetch changed", ours(target, "fetch", url, "x", *options), environment, "bytes_received")
        print(f"{'loop lag during a fetch':28} p99 {1000 * lag(place, url, endpoint):.1f} ms")
        if peers:
            run_peers(table, place, source, endpoint, environment, given)
    return table


def lag(place: Path, url: str, endpoint: str) -> float:
    """How late a task wakes up beside a fetch, in seconds: the 99th percentile."""
    late: list[float] = []

    async def watch() -> None:
        while True:
            begun = time.perf_counter()
            await anyio.sleep(0.002)
            late.append(time.perf_counter() - begun - 0.002)

    async def main() -> None:
        async with (
            Repository.init_async(place / "lag", insecure=True) as repo,
            open_store(url, endpoint=endpoint) as store,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(watch)
            await fetch(repo, store, "x")
            tasks.cancel_scope.cancel()

    with contextlib.ExitStack() as stack:
        for key, value in KEYS.items():
            stack.callback(os.environ.pop, key, None)
            os.environ[key] = value
        anyio.run(main, backend_options={"use_uvloop": True})
    shutil.rmtree(place / "lag")
    return sorted(late)[int(len(late) * 0.99)]


def run_peers(
    table: Table, place: Path, source: Path, endpoint: str, environment: dict[str, str], given: Input
) -> None:
    objects = str(source / "objects")
    if shutil.which("rclone"):
        remote = (
            f":s3,provider=Other,access_key_id=key,secret_access_key=secret,region=us-east-1,endpoint='{endpoint}'"
            ":bucket/rclone"
        )
        flags = ["--transfers", "32", "--checkers", "32", "-q"]
        table.add("objects up", "rclone", ["rclone", "copy", objects, remote, *flags], {})
        table.add("objects up again", "rclone", ["rclone", "copy", objects, remote, *flags], {})
        table.add("objects down", "rclone", ["rclone", "copy", remote, str(place / "rclone"), *flags], {})
    if shutil.which("aws"):
        sync = ["aws", "s3", "sync", "--only-show-errors", "--endpoint-url", endpoint]
        variables = {**environment, "AWS_DEFAULT_REGION": "us-east-1"}
        table.add("objects up", "aws", [*sync, objects, "s3://bucket/aws"], variables)
        table.add("objects down", "aws", [*sync, "s3://bucket/aws", str(place / "aws")], variables)
    if shutil.which("skopeo") and shutil.which("docker-registry") and shutil.which("cfsctl"):
        registry(table, place, given)


def registry(table: Table, place: Path, given: Input) -> None:
    """The same image from a registry by skopeo and cfsctl."""
    port = free_port()
    configuration = place / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(place / "registry")}}
    configuration.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}))
    command = ["docker-registry", "serve", str(configuration)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            time.sleep(1)
            where = f"docker://127.0.0.1:{port}/x:1"
            run(["skopeo", "copy", "-q", "--dest-tls-verify=false", given.reference, where], {})
            local = f"oci:{place}/pulled:x"
            run(["cfsctl", "--repo", str(place / "cfsctl"), "--insecure", "init"], {})
            script = (
                f"skopeo copy -q --src-tls-verify=false {where} {local} && "
                f"cfsctl --repo {place}/cfsctl --insecure oci pull {local} x"
            )
            table.add("pull from a registry", "skopeo+cfs", ["sh", "-c", script], {})
        except SystemExit as error:
            print(f"skopeo and cfsctl: {error}")
        finally:
            process.terminate()


# -- scale -------------------------------------------------------------------------------------


def timed(what: str, work: Callable[[], Any], per: int = 0, unit: str = "") -> Any:
    begun = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - begun
    each = f"{seconds / per * 1e6:10.2f} µs a {unit}" if per else ""
    print(f"{what:52} {seconds:9.3f} s {each}", flush=True)
    return found


def scale(images: int, objects: int, place: Path) -> None:
    """A store of many images, of which there are only documents: what plans, base search and gc cost."""
    rnd = random.Random(0)
    for count in (1_000, 10_000, 50_000, 500_000):
        entries = [Entry(rnd.randbytes(16), at // 2000, at % 2000 * 7000, 7000, 7000, 0, 0) for at in range(count)]
        sizes = [7000 * 2000] * (count // 2000 + 1)
        raw = timed(
            f"table of {count}: encode", partial(encode_table, Algorithm.SHA512, len(sizes), entries), count, "entry"
        )
        read = partial(decode_table, raw, "t", algorithm=Algorithm.SHA512, blob_sizes=sizes)
        table = timed(f"table of {count}: decode, {len(raw) / count:.1f} bytes each", read, count, "entry")
        index = timed(f"table of {count}: index", table.index, count, "entry")
        plan = partial(plan_ranges, table, range(count), sizes)
        ranges = timed(f"table of {count}: plan of everything", plan, count, "entry")
        print(f"{'':52} {len(ranges)} requests")
        if count == 50_000:
            blobs = [Descriptor(PACK_TYPE, f"sha256:{at:064x}", size) for at, size in enumerate(sizes)]
            bases = [Base(blobs, table)] * 9
            timed("base search: 50,000 objects in 9 bases", partial(choose_reuse, index.keys(), bases))
    for number in (images // 10, images):
        gc_scale(number, objects // images, place)


def gc_scale(images: int, objects: int, place: Path) -> None:
    """Garbage collection of so many images: manifests as a publisher writes them, with packs shared by neighbours."""
    shutil.rmtree(place / "scale", ignore_errors=True)
    for backend in (MemoryStore(), DirectoryStore(place / "scale")):
        backend.put("composefs-store.json", Description.new(Algorithm.SHA512).encode())
        begun = time.perf_counter()
        for number in range(images):
            fill_image(backend, number, objects)
        kind = type(backend).__name__
        print(f"{kind}: {images} images of {objects} objects written in {time.perf_counter() - begun:.1f} s")
        work = partial(run_program, collect("url", 86400, clock=time.monotonic), backend)
        report = timed(f"{kind}: gc of {images} manifests", work, images, "manifest")
        print(f"{'':52} {report.live_blobs} blobs live, {report.young_blobs} young")
    shutil.rmtree(place / "scale", ignore_errors=True)


def fill_image(backend: MemoryStore | DirectoryStore, number: int, objects: int) -> None:
    packs = [hashlib.sha256(b"%d" % (number // 10 * 30 + at)).hexdigest() for at in range(20)]
    packs.append(hashlib.sha256(b"own %d" % number).hexdigest())
    for digest in packs:
        key = blob_key(digest)
        if backend.head(key) is None:
            backend.put(key, b"")
    root = ObjectId(hashlib.sha512(b"%d" % number).digest())
    config = Config("image", Algorithm.SHA512, objects, objects * 7000, root.hex(), {}, {root.hex(): 1})
    raw = b"table %d" % number
    blobs = [Descriptor(PACK_TYPE, f"sha256:{digest}", 16 * MIB) for digest in packs]
    manifest = build_manifest(config, Descriptor(TABLE_TYPE, digest_of(raw), len(raw)), blobs)
    for content in (raw, config.encode(), manifest.raw):
        backend.put(blob_key(digest_of(content)), content)
    name = f"images/{number:06}"
    if isinstance(backend, MemoryStore):
        backend.swap(ref_key(name), encode_ref(name, manifest), None)
    else:
        backend.put(ref_key(name), encode_ref(name, manifest))  # no flush for each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    moving = commands.add_parser("transfers")
    moving.add_argument("input", nargs="?", default="A")
    moving.add_argument("--scale", type=float, default=1.0)
    moving.add_argument("--delay", type=float, default=0.0, help="seconds of a round trip")
    moving.add_argument("--no-peers", action="store_true")
    moving.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    growing = commands.add_parser("scale")
    growing.add_argument("--images", type=int, default=10_000)
    growing.add_argument("--objects", type=int, default=10_000_000)
    for each in (moving, growing):
        each.add_argument("--dir", type=Path, default=Path("/dev/shm"))
        each.add_argument("--json", type=Path)
    options = parser.parse_args()
    origin = provenance(*(() if options.command == "scale" else ("rclone", "aws", "skopeo", "cfsctl")))
    print_provenance(origin)
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        if options.command == "scale":
            scale(options.images, options.objects, Path(directory))
            return
        given = make_input(options.input, options.cache, options.scale)
        table = transfers(given, Path(directory), options.delay, not options.no_peers, options.cache)
    if options.json:
        report = {"provenance": origin, "rows": [asdict(row) for row in table.rows]}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
