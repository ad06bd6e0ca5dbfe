"""What is public: every type in a public signature can be imported from a public module, and has a docstring."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import typing
from types import ModuleType

import pytest

import composefs_async
from composefs_async import errors, fleet, oci, progress, splitstream
from composefs_async.registry import access

PUBLIC = [composefs_async, errors, fleet, oci, progress]
"""Modules whose ``__all__`` users may rely on."""


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What every module of the package has, by name: annotations are text."""
    for module in pkgutil.walk_packages(composefs_async.__path__, "composefs_async."):
        if not module.name.endswith(("__main__", "_core")):
            importlib.import_module(module.name)
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("composefs_async")]
    return {key: value for module in modules for key, value in vars(module).items() if not key.startswith("__")}


def classes_in(hint: object) -> set[type]:
    found = {hint} if isinstance(hint, type) else set()
    origin = typing.get_origin(hint)
    parts = [origin] if isinstance(origin, type) else []
    for argument in (*parts, *typing.get_args(hint)):
        for part in argument if isinstance(argument, list | tuple) else [argument]:
            found |= classes_in(part)
    return found


def functions(owner: object) -> list[typing.Any]:
    if inspect.isfunction(owner):
        return [inspect.unwrap(owner)]
    members = [inspect.getattr_static(owner, name) for name in dir(owner) if not name.startswith("_")]
    plain = [member.fget if isinstance(member, property) else getattr(member, "__func__", member) for member in members]
    return [inspect.unwrap(each) for each in plain if inspect.isfunction(each)]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_types_of_public_signatures_are_public(module: ModuleType, names: dict[str, object]) -> None:
    exported = {id(getattr(public, name)) for public in [*PUBLIC, access, splitstream] for name in public.__all__}
    private = {
        f"{name}: {found.__module__}.{found.__qualname__}"
        for name in module.__all__
        if not isinstance(owner := getattr(module, name), ModuleType)
        for function in functions(owner)
        for hint in typing.get_type_hints(function, localns=names).values()
        for found in classes_in(hint)
        if found.__module__.startswith("composefs_async") and id(found) not in exported
    }
    assert sorted(private) == []


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_names_have_docstrings(module: ModuleType) -> None:
    """A docstring begins with a sentence that stands alone: hover and `help` show nothing else."""
    silent = []
    for name in module.__all__:
        owner = getattr(module, name)
        for each in [owner, *functions(owner)] if inspect.isclass(owner) or inspect.isfunction(owner) else []:
            text = inspect.getdoc(each) or ""
            if not text or text.startswith(("The same", "Of ", "Those ", "That ")):
                silent.append(f"{name}: {each.__qualname__}: {text.splitlines()[:1]}")
    assert silent == []
