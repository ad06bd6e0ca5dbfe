from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from composefs_async import _native


@pytest.fixture(params=["_python", "_compiled"])
def fsverity(request: pytest.FixtureRequest) -> ModuleType:
    """The Python twin and the one over the native code."""
    if request.param == "_compiled" and _native.BACKEND == "python":
        pytest.skip("the native module was not built, or is switched off")
    return importlib.import_module(f"composefs_async.fsverity.{request.param}")
