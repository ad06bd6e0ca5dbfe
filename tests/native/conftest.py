from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from composefs_async import _native


@pytest.fixture
def core() -> ModuleType:
    """The native module."""
    if _native.BACKEND == "python":
        pytest.skip("the native module was not built, or is switched off")
    return importlib.import_module("composefs_async._native._core")


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the empty directory ``objects`` in tmp_path."""
    (tmp_path / "objects").mkdir()
    fd = os.open(tmp_path / "objects", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
