"""Read the write log of dm-log-writes, rebuild the disk as it was at points of the log, and check those states.

Imported on the host, and run as a script of its own in the machine:

  replay.py list LOG              show the entries
  replay.py image LOG BASE N OUT  make OUT, the disk BASE with entries 0..N applied
  replay.py check SPEC RESULTS    (in the machine) check states; used by `crash`

The log (drivers/md/dm-log-writes.c), in sectors of the size given in its super block: sector 0 holds the super
block; then for each entry one sector with its header (followed in that sector by the text of a mark) and, save for
discards, the data written. The driver logs a write only once a flush that came after its completion completes, and
logs writes with FUA when they complete: a prefix of the log that ends at a flush is what a power cut leaves at worst.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAGIC = 0x6A736677736872
SUPER = struct.Struct("<QQQI")  # magic, version, number of entries, sector size
HEADER = struct.Struct("<QQQQ")  # sector, number of sectors, flags, length of data
FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16
FLAGS = {FLUSH: "FLUSH", FUA: "FUA", DISCARD: "DISCARD", MARK: "MARK", METADATA: "METADATA"}
CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    index: int
    sector: int
    count: int
    flags: int
    mark: str | None
    position: int  # of its data in the log

    @property
    def kind(self) -> str:
        return "|".join(name for bit, name in FLAGS.items() if self.flags & bit) or "WRITE"


class Log:
    """The entries of a log; it stays open as long as the process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        magic, version, number, self.sector_size = SUPER.unpack(os.pread(self.fd, SUPER.size, 0))
        if magic != MAGIC or version != 1:
            raise ValueError(f"{path}: not a version 1 dm-log-writes log")
        self.entries: list[Entry] = []
        position = self.sector_size
        for index in range(number):
            entry = self._entry(index, position)
            self.entries.append(entry)
            position = entry.position
            if not entry.flags & DISCARD:
                position += entry.count * self.sector_size

    def _entry(self, index: int, position: int) -> Entry:
        sector = os.pread(self.fd, self.sector_size, position)
        where, count, flags, length = HEADER.unpack_from(sector)
        if flags & ~sum(FLAGS):
            raise ValueError(f"entry {index} of the log: unknown flags {flags:#x}")
        mark = sector[HEADER.size : HEADER.size + length].decode() if flags & MARK else None
        return Entry(index, where, count, flags, mark, position + self.sector_size)

    def apply(self, entry: Entry, fd: int) -> None:
        """Redo one entry; what was discarded reads as zeros."""
        target, source = entry.sector * self.sector_size, entry.position
        left = entry.count * self.sector_size
        while left:
            n = min(left, CHUNK)
            data = bytes(n) if entry.flags & DISCARD else os.pread(self.fd, n, source)
            if len(data) != n or os.pwrite(fd, data, target) != n:
                raise OSError(f"short transfer in entry {entry.index}")
            target, source, left = target + n, source + n, left - n

    def points(self, every: str, first: str, last: str | None) -> list[tuple[int, str | None]]:
        """Where to look, as pairs of entry and last mark.

        At each flush, FUA write and mark, or at each Nth entry; from one mark to another; not twice at one state.
        """
        points: list[tuple[int, str | None]] = []
        mark, fresh, begun = None, False, False
        for entry in self.entries:
            fresh = fresh or bool(entry.count)
            if entry.flags & MARK:
                mark, fresh = entry.mark, True
                begun = begun or mark == first
            stop = entry.flags & (FLUSH | FUA | MARK) if every == "flush" else entry.index % int(every) == 0
            if begun and fresh and (stop or entry is self.entries[-1]):
                points.append((entry.index, mark))
                fresh = False
            if begun and last is not None and mark == last:
                break
        return points


def list_entries(path: str) -> bool:
    for entry in Log(path).entries:
        where = entry.mark if entry.flags & MARK else f"sector {entry.sector} + {entry.count}" if entry.count else ""
        print(f"{entry.index:6} {entry.kind:16}", where)
    return False


def make_image(path: str, base: str, last: str, out: str) -> bool:
    subprocess.run(["cp", "--sparse=always", base, out], check=True)
    log = Log(path)
    with open(out, "r+b", buffering=0) as f:
        for entry in log.entries[: int(last) + 1]:
            log.apply(entry, f.fileno())
    return False


def call(*command: str) -> tuple[int, str]:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    return done.returncode, done.stdout


def must(*command: str) -> None:
    status, output = call(*command)
    if status:
        raise RuntimeError(f"{' '.join(command)}: {output}")


def run_check(spec: dict[str, Any], index: int, mark: str | None) -> tuple[int | str, str]:
    """Run the check and end what it left running: how it ended, and its output."""
    env = {**os.environ, "VM_POINT": str(index), "VM_MARK": mark or ""}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            ["bash", "-c", spec["check"]],
            cwd="/data",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        status: int | str
        try:
            status = process.wait(spec["check_timeout"])
        except subprocess.TimeoutExpired:
            status = f"none after {spec['check_timeout']} s"
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        return status, output.read()


def check_point(spec: dict[str, Any], sectors: int, index: int, mark: str | None) -> tuple[bool, str]:
    """Run the check on a throw-away snapshot of the rebuilt disk: whether it passed, and what it said.

    Mounting the snapshot leaves the disk itself alone, whatever recovery writes.
    """
    table = f"0 {sectors} snapshot /dev/vm/data /dev/vm/cow N 16"
    must("dmsetup", "create", "point", "--table", table)
    try:
        options = ["-o", spec["mount_options"]] if spec["mount_options"] else []
        failed, output = call("mount", "-t", spec["fs"], *options, "/dev/mapper/point", "/data")
        if failed:
            return False, f"cannot mount: {output}"
        try:
            status, output = run_check(spec, index, mark)
        finally:
            must("umount", "-R", "/data")
        return status == 0, output if status == 0 else f"exit status {status}\n{output}"
    finally:
        if spec["fs"] == "btrfs":
            call("btrfs", "device", "scan", "--forget")
        must("dmsetup", "remove", "--retry", "point")


def check(spec_path: str, results_path: str) -> bool:
    with open(spec_path) as f:
        spec = json.load(f)
    log = Log("/dev/vm/log")
    results: list[dict[str, Any]] = []
    done = 0
    disk = os.open("/dev/vm/data", os.O_RDWR)
    sectors = os.lseek(disk, 0, os.SEEK_END) // 512
    for index, mark in spec["points"]:
        for entry in log.entries[done : index + 1]:
            log.apply(entry, disk)
        done = index + 1
        os.fsync(disk)
        passed, output = check_point(spec, sectors, index, mark)
        kind = log.entries[index].kind
        results.append({"entry": index, "kind": kind, "mark": mark, "passed": passed, "output": output})
        if not passed or spec["verbose"]:
            lines = [f"{'pass' if passed else 'FAIL'} entry {index} {kind} after mark {mark}", *output.splitlines()]
            print("\n    ".join(lines), flush=True)
        if not passed and spec["first_failure"]:
            break
    with open(results_path, "w") as f:
        json.dump(results, f, indent=1)
    failed = [str(result["entry"]) for result in results if not result["passed"]]
    print(f"{len(results)} states checked, {len(failed)} failed{': ' if failed else ''}{' '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    commands: dict[str, Callable[..., bool]] = {"list": list_entries, "image": make_image, "check": check}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        sys.exit(commands[sys.argv[1]](*sys.argv[2:]))
    except (OSError, ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        sys.exit(125)
