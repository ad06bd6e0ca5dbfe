"""The native code and the policy whether to use it.

Owns the C sources, the module `_core` made of them, and the environment variable COMPOSEFS_ASYNC_NATIVE, which is
read once, at import; no other module outside the command line and the opening of repositories reads the environment:

``auto``
    (or unset) use the native code if it was built, else its Python twins;
``off``
    use the Python twins;
``require``
    fail to import without the native code.

Does not own the twins: they are in `composefs_async.fsverity` and `composefs_async._repo`.  Where `BACKEND` is
``native``, ``from composefs_async._native import _core`` works; under ``off`` it may work too, for tests.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Final, Literal

__all__ = ["BACKEND", "FEATURES", "missing"]

_POLICIES = ("auto", "off", "require")


def _load(policy: str) -> ModuleType | None:
    if policy not in _POLICIES:
        raise ImportError(f"COMPOSEFS_ASYNC_NATIVE is {policy!r}; it can be {', '.join(_POLICIES)}")
    if policy == "off":
        return None
    try:
        return importlib.import_module("._core", __name__)
    except ImportError as error:
        if policy == "auto":
            return None
        raise ImportError(
            f"COMPOSEFS_ASYNC_NATIVE is 'require' but the native module cannot be loaded ({error}); "
            "install a C compiler and build again, or unset the variable"
        ) from error


def _features(module: ModuleType | None) -> dict[str, tuple[str, ...]]:
    if module is None:
        return {"sha256": ("hashlib",), "sha512": ("hashlib",)}
    return {"sha256": module.implementations(1), "sha512": module.implementations(2)}


_module = _load(os.environ.get("COMPOSEFS_ASYNC_NATIVE") or "auto")

BACKEND: Final[Literal["native", "python"]] = "python" if _module is None else "native"
FEATURES: Final = _features(_module)
"""Implementations of the digest that this processor can run, fastest first, by the name of the algorithm."""


def missing() -> str | None:
    """Say that native code is missing and how to get it; None where it is used."""
    if BACKEND == "native":
        return None
    if os.environ.get("COMPOSEFS_ASYNC_NATIVE") == "off":
        return "native code is switched off by COMPOSEFS_ASYNC_NATIVE=off; this is about half as fast"
    return (
        "native code is missing, so this is about half as fast; with a C compiler: "
        "pip install --force-reinstall --no-deps --no-cache-dir composefs-async"
    )
