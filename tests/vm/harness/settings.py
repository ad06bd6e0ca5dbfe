"""Where the harness keeps its files, its exit statuses, and whether this machine can run it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CACHE = Path(
    os.environ.get("COMPOSEFS_ASYNC_VM_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "composefs-async-vm"
)

FAILED = 125  # the harness failed, not the command
TIMED_OUT = 124

TOOLS = ("qemu-system-x86_64", "cpio", "mkfs.erofs", "mkfs.ext4")
"""What a boot needs once `setup` has made its images; `setup` installs them with apt."""


class HarnessError(Exception):
    """The harness could not do its part."""


def note(*words: object) -> None:
    print("vm:", *words, file=sys.stderr, flush=True)


def obstacle() -> str | None:
    """Why this machine cannot run the virtual machine, or None."""
    if (system := f"{platform.system()} on {platform.machine()}") != "Linux on x86_64":
        return f"the virtual machine needs Linux on x86_64, this is {system}"
    if os.geteuid() != 0:
        return "the virtual machine needs root"
    missing = [name for name in TOOLS if not shutil.which(name)]
    if not (CACHE / "inputs").exists():
        missing.append("the kernel and root image made by tests/vm/setup")
    if missing and not shutil.which("apt-get"):
        return f"the virtual machine needs {', '.join(missing)}, and there is no apt-get to install from"
    return None
