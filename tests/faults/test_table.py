"""Every answer to a failing disk: the table of `driver.py`, some of it every day and all of it when asked for.

After each case: an error of ours or of the system, in one line and with the path, or success; no hang, no descriptor
and no thread left; references, names and objects as before or as after; nothing taken for damage; and the next run
succeeds.  The errors come from the C library, which is the same for Python and the native code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from composefs_async import _native

from ..conftest import preloading

HERE = Path(__file__).parent
ROWS = [(loop, native) for loop in ("asyncio", "uvloop", "trio") for native in ("require", "off")]
"""The whole table is dealt out to these."""
EVERY_DAY = {("asyncio", "require"): 900, ("trio", "off"): 900}
"""Rows that are tried every day, and of how many cases one is."""


def run(library: Path, root: Path, loop: str, native: str, stride: int, seed: int) -> dict[str, Any]:
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    if native == "require" and _native.BACKEND != "native":
        pytest.skip("the native code is not used")
    command = [sys.executable, str(HERE / "driver.py"), str(root), loop, str(stride), str(seed)]
    environment = {**os.environ, **preloading(library), "COMPOSEFS_ASYNC_NATIVE": native, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    *wrong, account = [json.loads(line) for line in done.stdout.splitlines()] or [{"died": done.stderr[-3000:]}]
    assert (done.returncode, wrong) == (0, []), done.stderr[-3000:]
    print(account)
    found: dict[str, Any] = account
    return found


@pytest.mark.parametrize(("loop", "native"), EVERY_DAY)
def test_some_of_the_table(library: Path, tmp_path: Path, loop: str, native: str) -> None:
    account = run(library, tmp_path, loop, native, EVERY_DAY[loop, native], len(loop))
    assert account["cases"] >= account["of"] // EVERY_DAY[loop, native] > 10


@pytest.mark.stress
@pytest.mark.parametrize(("loop", "native"), ROWS)
def test_the_whole_table(library: Path, tmp_path: Path, loop: str, native: str) -> None:
    """All rows together try each case once, or each n-th if COMPOSEFS_ASYNC_FAULT_STRIDE is n."""
    every = int(os.environ.get("COMPOSEFS_ASYNC_FAULT_STRIDE") or 1)
    stride = every * len(ROWS)
    account = run(library, tmp_path, loop, native, stride, ROWS.index((loop, native)) * every)
    assert account["cases"] >= account["of"] // stride
