"""Record every write of a command to /data, then check the states of the disk that a power cut could have left."""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .images import make_data, sparse_file
from .machine import Machine, workspace
from .options import Options, parse, parser
from .replay import FLUSH, Log
from .settings import TIMED_OUT, note

LOG_SIZE = 64 << 30  # of a sparse file


@dataclass
class CrashOptions(Options):
    """And what to check."""

    size: int = 512 << 20
    check: str = ""
    check_timeout: int = 60
    points: str = "flush"
    first: str = "vm-start"
    last: str | None = None
    first_failure: bool = False
    keep: Path | None = None
    reuse: Path | None = None


def body(argv: list[str]) -> int:
    options = _options(argv)
    with workspace() as work:
        where = options.keep or options.reuse or work
        where.mkdir(parents=True, exist_ok=True)
        base, log = where / "base.img", where / "log.img"
        if options.command:
            status = _record(options, work, base, log)
            if status:
                note(f"nothing checked: the command ended with {status}")
                return status if status >= TIMED_OUT else 2
        return _check(options, work, base, log)


def _options(argv: list[str]) -> CrashOptions:
    options = CrashOptions()
    p = parser(__doc__, options)
    p.add_argument("--check", required=True, metavar="SCRIPT", help="shell script that fails if /data is not right")
    p.add_argument("--check-timeout", type=int, metavar="SECONDS", help="for each check (60)")
    p.add_argument(
        "--points",
        type=_points,
        metavar="flush|N",
        help="check at flushes, FUA writes and marks, or at each Nth log entry (flush)",
    )
    p.add_argument("--from", dest="first", metavar="MARK", help="begin there (vm-start)")
    p.add_argument("--to", dest="last", metavar="MARK", help="end there")
    p.add_argument("--first-failure", action="store_true", help="stop at the first failure")
    p.add_argument("--keep", type=Path, metavar="DIR", help="keep base.img and log.img there")
    p.add_argument("--reuse", type=Path, metavar="DIR", help="check what --keep kept; no COMMAND")
    parse(p, argv, options)
    if bool(options.command) == bool(options.reuse):
        p.error("give either a command or --reuse")
    return options


def _points(text: str) -> str:
    if text != "flush" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError("flush or a number")
    return text


def _record(options: CrashOptions, work: Path, base: Path, log: Path) -> int:
    """Run the command; leave the disk it began with in *base* and the writes in *log*."""
    make_data(base, options.fs, options.size)
    sparse_file(log, LOG_SIZE)
    machine = Machine(options, work, "record")
    machine.modules.append("dm_log_writes")
    data = work / "data"
    _sparse_copy(base, data)
    machine.disk("data", data)
    machine.disk("log", log)
    status = machine.run(options.command)
    data.unlink()
    return status


def _check(options: CrashOptions, work: Path, base: Path, log: Path) -> int:
    recorded = Log(log)
    points = recorded.points(options.points, options.first, options.last)
    flushes = sum(bool(entry.flags & FLUSH) for entry in recorded.entries)
    note(f"{len(recorded.entries)} log entries, {flushes} flushes, {len(points)} states to check")
    machine = Machine(options, work, "check")
    machine.modules.append("dm_snapshot")
    data = work / "data"
    _sparse_copy(base, data)
    machine.disk("data", data)
    machine.disk("log", log, read_only=True)
    machine.scratch("cow", 2 * data.stat().st_size)
    names = ("fs", "mount_options", "check", "check_timeout", "verbose", "first_failure")
    spec = {name: getattr(options, name) for name in names} | {"points": points}
    (machine.stage / "vm" / "spec").write_text(json.dumps(spec))
    return machine.run(["python3", "/run/vm/replay.py", "check", "/run/vm/spec", "/out/crash.json"])


def _sparse_copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
