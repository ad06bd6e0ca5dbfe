"""SELinux labels and rootless mounts, against cfsctl in the same run.

    python benchmarks/boot.py [DIRECTORY...] [--dir /dev/shm] [--rounds N] [--inodes N] [--json FILE]

*labels*: the names of the DIRECTORY, by default ``/usr``, ``/etc`` and ``/var``, without their content, with Debian's
policy of 5,845 lines: ``create-dumpfile`` with and without ``--bootable``, of which the difference is what labels cost;
what both programs print must be equal.  Then the labels alone, in this process, by RE2 and by Python's own engine.

*rootless*: an image of ``--inodes`` files, mounted by ``mount --rootless``, against cfsctl's FUSE server: until a
command in it ends that does nothing, and one that looks at every file twice.

CPU time is that of the programs and of what they start; the best round counts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imports import OURS, Run, run
from provenance import print_provenance, provenance

from composefs_async import Algorithm
from composefs_async._repo.scan import scan_directory
from composefs_async._zstd import zstd
from composefs_async.boot import Policy, label_tree
from composefs_async.boot.matching import re2_module
from composefs_async.tree.walk import walk

POLICY = Path(__file__).parent.parent / "tests/vectors/boot/debian-policy.tar.zst"
WHOLE = "find . -printf %s; find . -printf %m"


def make_root(place: Path, directories: list[str]) -> dict[str, bytes]:
    """A root file system of names alone; returns the files of its policy."""
    for directory in directories:
        target = place / directory.strip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "--attributes-only", directory, target], check=True)
    for name in ("usr", "boot", "sysroot"):
        (place / name).mkdir(parents=True, exist_ok=True)
    files = place / "etc/selinux/default/contexts/files"
    shutil.rmtree(place / "etc/selinux", ignore_errors=True)
    files.mkdir(parents=True)
    (place / "etc/selinux/config").write_text("SELINUXTYPE=default\n")
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(POLICY.read_bytes()))) as archive:
        archive.extractall(files, filter="data")
    return {each.name: each.read_bytes() for each in files.iterdir()}


def label_commands(root: Path, rounds: int) -> dict[str, dict[str, list[Run]]]:
    """By program, with and without ``--bootable``."""
    programs = {"ours": OURS} | ({"cfsctl": ["cfsctl"]} if shutil.which("cfsctl") else {})
    found: dict[str, dict[str, list[Run]]] = {name: {"plain": [], "bootable": []} for name in programs}
    outputs: dict[str, set[bytes]] = {"plain": set(), "bootable": set()}
    for _ in range(rounds):
        for name, program in programs.items():
            for kind, options in (("plain", []), ("bootable", ["--bootable"])):
                with tempfile.NamedTemporaryFile(dir=root.parent) as out:
                    command = [*program, "--no-repo", "--hash", "sha256", "create-dumpfile", *options, str(root)]
                    found[name][kind].append(run(["sh", "-c", 'exec "$0" "$@" >' + out.name, *command], {}))
                    outputs[kind].add(subprocess.run(["sha256sum"], stdin=out, check=True, capture_output=True).stdout)
    if any(len(each) > 1 for each in outputs.values()):
        raise SystemExit("the programs do not print the same")
    return found


def label_engines(root: Path, files: dict[str, bytes], rounds: int) -> dict[str, float]:
    """CPU time in microseconds an entry, and that of making the policy in milliseconds."""
    tree = scan_directory(root, Algorithm.SHA256)
    entries = sum(1 for _ in walk(tree))
    found: dict[str, float] = {"entries": entries}
    for engine in ("re2", "python") if re2_module() else ("python",):
        times: list[tuple[float, float]] = []
        for _ in range(rounds):
            start = time.process_time()
            policy = Policy.from_files(files, engine=engine)  # type: ignore[arg-type]
            made = time.process_time()
            label_tree(tree, policy)
            times.append((made - start, time.process_time() - made))
        found[f"{engine}, policy ms"] = min(each[0] for each in times) * 1e3
        found[f"{engine}, µs an entry"] = min(each[1] for each in times) / entries * 1e6
    return found


def make_image(place: Path, inodes: int) -> str:
    """A repository in *place* with an image of so many files; returns the image's id."""
    lines = ["/ 0 40755 2 0 0 0 0.0 - - -\n"]
    for number in range(inodes - inodes // 64):
        if number % 64 == 0:
            lines.append(f"/d{number // 64} 0 40755 2 0 0 0 0.0 - - -\n")
        lines.append(f"/d{number // 64}/f{number} 5 100644 1 0 0 0 0.0 - hello -\n")
    dump, image, repo = place / "dump", place / "image", place / "repo"
    dump.write_text("".join(lines))
    subprocess.run([*OURS, "mkcomposefs", "--from-file", dump, image], check=True)
    init = ["init", "--insecure", "--algorithm", "fsverity-sha256-12"]
    subprocess.run([*OURS, "--repo", repo, *init], check=True, stdout=subprocess.DEVNULL)
    with image.open("rb") as file:
        command = [*OURS, "--repo", repo, "import-image", "bench"]
        done = subprocess.run(command, stdin=file, check=True, capture_output=True, text=True)
    return done.stdout.split()[-1].rpartition(":")[2]


def rootless(place: Path, image: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round."""
    repo, target = place / "repo", place / "mountpoint"
    target.mkdir()
    found: dict[str, list[float]] = {}

    def timed(name: str, command: list[Any]) -> None:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found.setdefault(name, []).append(time.perf_counter() - start)

    for _ in range(rounds):
        ours = [*OURS, "--repo", repo, "mount", "--rootless", image, "--"]
        timed("ours, mount", [*ours, "true"])
        timed("ours, mount and find twice", [*ours, "sh", "-c", WHOLE])
        if shutil.which("cfsctl") and os.access("/dev/fuse", os.R_OK | os.W_OK):
            mount = f'cfsctl --repo "{repo}" --insecure mount --fuse yes {image} "{target}"'
            timed("cfsctl --fuse, mount", ["sh", "-c", f'{mount} && umount "{target}"'])
            whole = f'(cd "{target}" && {WHOLE})'
            timed("cfsctl --fuse, mount and find twice", ["sh", "-c", f'{mount} && {whole} && umount "{target}"'])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", default=["/usr", "/etc", "/var"], metavar="DIRECTORY")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where to work (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inodes", type=int, default=64_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    came_from = provenance("cfsctl")
    print_provenance(came_from)
    with tempfile.TemporaryDirectory(prefix="composefs-bench-", dir=options.dir) as folder:
        root = Path(folder, "root")
        files = make_root(root, options.directories)
        commands = label_commands(root, options.rounds)
        engines = label_engines(root, files, options.rounds)
        shutil.rmtree(root)
        mounts = rootless(Path(folder), make_image(Path(folder), options.inodes), options.rounds)
    print(f"\n{'labels':40}{'cpu s':>9}{'of labels':>11}")
    for name, each in commands.items():
        cpu = {kind: min(found.cpu for found in runs) for kind, runs in each.items()}
        for kind, seconds in cpu.items():
            labels = f"{seconds - cpu['plain']:11.2f}" if kind == "bootable" else ""
            print(f"create-dumpfile, {kind + ', ' + name:23}{seconds:9.2f}{labels}")
    for name, value in engines.items():
        print(f"{name:40}{value:9.1f}")
    print(f"\n{'mounts of ' + str(options.inodes) + ' inodes':40}{'best s':>9}")
    for name, times in mounts.items():
        print(f"{name:40}{min(times):9.2f}")
    if options.json:
        found = {
            name: {kind: [asdict(one) for one in runs] for kind, runs in each.items()}
            for name, each in commands.items()
        }
        figures = {"provenance": came_from, "labels": found, "engines": engines, "mounts": mounts}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
