"""A long import that is killed anywhere: the check finds nothing, and the next run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import preloading

HERE = Path(__file__).parent


def killed(library: Path, root: Path, count: int, seed: int) -> dict[str, int]:
    command = [sys.executable, str(HERE / "kills.py"), str(root), str(count), str(seed)]
    environment = {**os.environ, **preloading(library), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    account = json.loads(done.stdout)
    assert (account["wrong"], account["kills"]) == ([], count)
    print(account)
    among: dict[str, int] = account["among"]
    return among


def test_some_kills(library: Path, tmp_path: Path) -> None:
    assert sum(killed(library, tmp_path, 12, 1).values()) == 12


@pytest.mark.stress
def test_five_hundred_kills_among_objects_streams_and_references(library: Path, tmp_path: Path) -> None:
    among = killed(library, tmp_path, 510, 2)
    assert min(among.values()) > 100
