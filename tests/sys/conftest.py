from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def may_mount() -> None:
    """Skips the test where mounts are not allowed, and says why."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))
    if not effective >> 21 & 1:  # linux/capability.h, CAP_SYS_ADMIN
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    known = Path("/proc/filesystems").read_text().split()
    for name in ("erofs", "overlay"):
        if name not in known:
            pytest.skip(f"the kernel has no {name}")
