"""How ``async with`` of a repository is left: by `sys.exit` and interrupts as by any exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, anyio
from composefs_async import Repository

async def main():
    async with Repository.init_async({path!r}, insecure=True) as repo:
        handle = repo.spawn_finalize_object_tmpfile(await repo.create_object_tmpfile_async(), 0)
        {statement}

anyio.run(main, backend={backend!r}, backend_options={options!r})
"""
LOOPS = {"asyncio": ("asyncio", {}), "uvloop": ("asyncio", {"use_uvloop": True}), "trio": ("trio", {})}
WAYS = {
    "sys.exit(3)": (3, ""),
    "raise SystemExit('bye')": (1, "bye\n"),
    "raise KeyboardInterrupt": (-2, "KeyboardInterrupt\n"),
    "raise ValueError('plain')": (1, "ValueError: plain\n"),
}


@pytest.mark.parametrize("statement", WAYS)
@pytest.mark.parametrize("loop", LOOPS)
def test_what_ends_the_block_ends_the_program_as_itself(loop: str, statement: str, tmp_path: Path) -> None:
    backend, options = LOOPS[loop]
    program = PROGRAM.format(path=str(tmp_path / "repo"), statement=statement, backend=backend, options=options)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    code, last = WAYS[statement]
    assert "ExceptionGroup" not in done.stderr
    assert (done.returncode, done.stderr.splitlines(keepends=True)[-1:]) == (code, [last] if last else [])
