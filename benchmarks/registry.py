"""Pulls from and pushes to docker-registry on loopback, as commands, against cfsctl, skopeo and podman in the same run.

    python benchmarks/registry.py A B --dir /dev/shm
    python benchmarks/registry.py A --scale 0.2 --slow        # also over a line with a limit for each connection

Rows: ``ours, oci:`` imports the same image from an image directory; ``again`` pulls what is there; ``killed`` is killed
at half and started again, and says how many bytes went over the wire then; ``skopeo copy`` fetches to a directory and
unpacks nothing.  With ``--slow`` the registry is the one of the tests, with 25 MB/s a connection and a delay of 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from imports import MEMORY, OURS, Run, run, settle
from inputs import DEFAULT_CACHE, Input, make_input
from provenance import print_provenance, provenance

from composefs_async.testing.registry import FakeRegistry

INSECURE = "--tls-verify=false"


@contextmanager
def docker_registry(base: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port; the value is its address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{sock.getsockname()[1]}"
    with tempfile.TemporaryDirectory(dir=base) as directory:
        config = Path(directory) / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage:\n  filesystem: {{rootdirectory: {directory}/data}}\nhttp: {{addr: {host}}}\n"
        )
        with subprocess.Popen(["docker-registry", "serve", config], stdout=subprocess.DEVNULL) as process:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), 1).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            try:
                yield host
            finally:
                process.terminate()


def repository(base: Path) -> Path:
    place = Path(tempfile.mkdtemp(prefix="composefs-bench-", dir=base)) / "repo"
    run([*OURS, "--repo", str(place), "init", "--insecure"], {})
    return place


def ours(place: Path, *arguments: str) -> list[str]:
    return [*OURS, "--repo", str(place), "oci", *arguments]


def killed_at_half(place: Path, reference: str, size: int) -> tuple[Run, int]:
    """Pull, kill it at half, pull again; the second run, and the bytes that it fetched."""
    command = ours(place, "pull", INSECURE, "--progress=json", reference, "bench")
    received: dict[str, int] = {}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "bytes-fetched":
                received[event["digest"]] = event["received"]
                if sum(received.values()) >= size // 2:
                    process.send_signal(signal.SIGKILL)
                    break
    start = time.perf_counter()
    command = ours(place, "pull", INSECURE, "--progress=none", "--json", reference, "bench")
    done = subprocess.run(command, capture_output=True, check=True)
    return Run(time.perf_counter() - start, 0.0, 0), json.loads(done.stdout)["fetched"]


def measure(given: Input, host: str, base: Path, rounds: int) -> None:
    reference = f"docker://{host}/bench/{given.name.lower()}:1"
    places: list[Path] = []
    runs: dict[str, list[Run]] = {}
    notes: dict[str, str] = {}

    def note(name: str, found: Run) -> None:
        runs.setdefault(name, []).append(found)

    def fresh() -> Path:
        places.append(repository(base))
        return places[-1]

    run([*OURS, "oci", "copy", INSECURE, f"oci:{given.path}:latest", reference], {})
    conf = base / "composefs-bench-home"
    drop_in = conf / ".config/containers/registries.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
    for _ in range(rounds):
        settle(given)
        place = fresh()
        note("ours, oci:", run(ours(place, "pull", f"oci:{given.path}:latest", "bench"), {}))
        place = fresh()
        settle(given)
        note("ours", run(ours(place, "pull", INSECURE, reference, "bench"), {}))
        note("ours, again", run(ours(place, "pull", INSECURE, reference, "bench"), {}))
        place = fresh()
        found, fetched = killed_at_half(place, reference, given.packed_bytes)
        note("ours, killed", found)
        notes["ours, killed"] = f"{100 * fetched / given.packed_bytes:.0f} % of the bytes after the kill"
        if shutil.which("cfsctl") and shutil.which("skopeo"):
            place = fresh()
            settle(given)
            command = ["cfsctl", "--insecure", "--repo", str(place), "oci", "pull", reference, "bench"]
            note("cfsctl", run(command, {"HOME": str(conf)}))
        if shutil.which("skopeo"):
            target = fresh().parent / "dir"
            settle(given)
            note("skopeo copy", run(["skopeo", "copy", "--src-tls-verify=false", reference, f"dir:{target}"], {}))
            pushed = f"docker://{host}/s/{time.time_ns()}:1"
            note("skopeo copy, push", run(["skopeo", "copy", "--dest-tls-verify=false", f"dir:{target}", pushed], {}))
        if shutil.which("podman"):
            root = fresh().parent
            command = ["podman", f"--root={root}/root", f"--runroot={root}/run", "pull", INSECURE, reference]
            note("podman pull", run(command, {}))
        place = fresh()
        run(ours(place, "pull", "--keep-blobs", f"oci:{given.path}:latest", "bench"), {})
        note("ours, push", run(ours(place, "push", INSECURE, "bench", f"docker://{host}/o/{time.time_ns()}:1"), {}))
        for each in places:
            shutil.rmtree(each.parent, ignore_errors=True)
        places.clear()
    print(f"\n{given}")
    print(f"{'':24}{'best s':>9}{'median s':>10}{'cpu s':>8}{'RSS MiB':>9}")
    for name, each in runs.items():
        best = min(each, key=lambda one: one.seconds)
        median = sorted(one.seconds for one in each)[len(each) // 2]
        rss = max(one.rss for one in each) >> 20
        print(f"{name:24}{best.seconds:9.2f}{median:10.2f}{best.cpu:8.2f}{rss:9}  {notes.get(name, '')}")
    shutil.rmtree(conf, ignore_errors=True)


async def slow_line(given: Input, base: Path) -> None:
    """The same over 25 MB/s a connection and 50 ms, with one connection and with eight."""
    registry = FakeRegistry()
    directory = Path(given.path)
    entry = json.loads((directory / "index.json").read_bytes())["manifests"][0]
    for blob in (directory / "blobs/sha256").iterdir():
        registry.put_blob("bench", blob.read_bytes())
    registry.put_manifest("bench", "1", registry.content[entry["digest"]], entry["mediaType"])
    registry.latency, registry.rate = 0.05, 25e6
    async with registry.serving() as host:
        for jobs in (1, 8):
            place = await anyio.to_thread.run_sync(repository, base)
            command = ours(place, "pull", INSECURE, f"--jobs={jobs}", f"docker://{host}/bench:1", "bench")
            start = time.perf_counter()
            await anyio.run_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            print(f"{given.name}, 25 MB/s a connection, 50 ms, {jobs} connection(s): {seconds:.2f} s")
            await anyio.to_thread.run_sync(shutil.rmtree, place.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["A", "B"], metavar="NAME")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the inputs are kept (%(default)s)")
    parser.add_argument("--dir", type=Path, default=MEMORY, help="where to import to (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the inputs' sizes")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--slow", action="store_true", help="also over a slow line")
    options = parser.parse_args()
    if not shutil.which("docker-registry"):
        sys.exit("docker-registry is not on PATH: apt-get install docker-registry")
    os.environ.pop("HTTP_PROXY", None)
    print_provenance(provenance("docker-registry", "cfsctl", "skopeo", "podman"))
    for name in options.names:
        given = make_input(name, options.cache, options.scale)
        with docker_registry(options.dir) as host:
            measure(given, host, options.dir, options.rounds)
        if options.slow:
            anyio.run(slow_line, given, options.dir)


if __name__ == "__main__":
    main()
