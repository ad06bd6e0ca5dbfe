"""The command line that `run` and `crash` share."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from .settings import FAILED, HarnessError, note

_NOT_A_TARGET = ("data", "dev", "proc", "run", "sys")


@dataclass
class Options:
    """What to boot; argparse fills it in."""

    fs: str = "ext4"
    size: int = 2 << 30
    mount_options: str = ""
    mem: int = 2048
    cpus: int = 1
    timeout: int = 900
    copy: list[tuple[Path, str]] = field(default_factory=list)
    path: list[Path] = field(default_factory=list)
    python: Path | None = None
    env: list[str] = field(default_factory=list)
    cwd: str = "/data"
    out: Path | None = None
    console: Path | None = None
    verbose: bool = False
    command: list[str] = field(default_factory=list)


def size(text: str) -> int:
    """Bytes, with K, M, G or T for powers of 1024."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"not a size: {text}")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def existing(text: str) -> Path:
    path = Path(text).absolute()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"no such file: {text}")
    return path


def copy_pair(text: str) -> tuple[Path, str]:
    source, _, target = text.partition(":")
    path = existing(source)
    target = os.path.normpath(target or str(path))
    if not re.match("/[^/]", target) or target.split("/")[1] in _NOT_A_TARGET:
        raise argparse.ArgumentTypeError(f"cannot copy to {target}")
    return path.resolve(), target


def parser(description: str | None, defaults: Options) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description, usage="%(prog)s [options] -- COMMAND...")
    p.add_argument("--fs", choices=["ext4", "btrfs", "xfs"], help=f"file system of /data ({defaults.fs})")
    p.add_argument("--size", type=size, help=f"of /data, as in 512M ({defaults.size >> 20}M)")
    p.add_argument("--mount-options", metavar="OPTIONS", help="for /data, as in mount -o")
    p.add_argument("--mem", type=int, metavar="MIB", help=f"memory ({defaults.mem})")
    p.add_argument("--cpus", type=int, metavar="N", help=f"processors ({defaults.cpus})")
    p.add_argument("--timeout", type=int, metavar="SECONDS", help=f"for COMMAND ({defaults.timeout})")
    p.add_argument(
        "--copy",
        type=copy_pair,
        action="append",
        metavar="SRC[:DST]",
        help="make a file or directory available, writable; DST defaults to SRC",
    )
    p.add_argument(
        "--path",
        type=existing,
        action="append",
        metavar="DIR",
        help="copy a directory with programs to its own path and put it into PATH",
    )
    p.add_argument(
        "--python",
        type=existing,
        metavar="PREFIX",
        help="virtual environment or Python installation to use, with its packages (this Python without packages)",
    )
    p.add_argument("--env", action="append", metavar="NAME[=VALUE]", help="set a variable, or pass it on")
    p.add_argument("--cwd", metavar="DIR", help=f"where COMMAND starts ({defaults.cwd})")
    p.add_argument("--out", type=Path, metavar="DIR", help="where files left in /out go")
    p.add_argument("--console", type=Path, metavar="FILE", help="save the kernel's messages")
    p.add_argument("-v", "--verbose", action="store_true", help="report times and all that was done")
    return p


def parse(p: argparse.ArgumentParser, argv: list[str], options: Options) -> None:
    """Fill in *options*; the first ``--`` separates them from the command."""
    at = argv.index("--") if "--" in argv else len(argv)
    p.parse_args(argv[:at], namespace=options)
    options.command = argv[at + 1 :]


def main(body: Callable[[list[str]], int]) -> NoReturn:
    """Run an entry point: exit with its status, or 125 when the harness fails, and end cleanly when signalled."""

    def stop(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    try:
        sys.exit(body(sys.argv[1:]))
    except (HarnessError, OSError, subprocess.CalledProcessError) as error:
        note(error)
        sys.exit(FAILED)
