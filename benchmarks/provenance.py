"""Where figures come from: commit, machine, versions; in the header of each benchmark and in its JSON."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import composefs_async
from composefs_async import _native

PEERS = {"cfsctl": "--version", "umoci": "--version", "skopeo": "--version", "podman": "--version"}


def provenance(*peers: str) -> dict[str, str]:
    """What a reader needs to judge the figures, and to take them again.

    Args:
        peers: programs to compare with; one that is not on PATH is named as missing.
    """
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _said("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty") or "not a checkout",
        "processor": f"{_processor()}, {os.cpu_count()} threads",
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "composefs_async": f"{metadata.version('composefs-async')}, {_native.BACKEND} code, {_home()}",
    }
    for name in peers:
        said = _said(name, PEERS.get(name, "--version")) if shutil.which(name) else ""
        found[name] = (said.splitlines() or ["version not told"])[0] if shutil.which(name) else "not on PATH: left out"
    return found


def print_provenance(found: dict[str, str]) -> None:
    """Print it as the header of the figures."""
    for key, value in found.items():
        print(f"{key:16} {value}")


def _home() -> str:
    """Whether the package that is measured is the installed one, or the checkout."""
    inside = Path(composefs_async.__file__).is_relative_to(Path(sys.prefix))
    return "installed" if inside else "from the checkout"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
