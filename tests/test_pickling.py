"""Errors and public values pass between processes unchanged."""

from __future__ import annotations

import copy
import dataclasses
import enum
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import composefs_async
from composefs_async import errors
from composefs_async.digest import Algorithm, ObjectId

WAYS: list[Callable[[Any], Any]] = [
    *(lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol)) for protocol in range(6)),
    copy.copy,
    copy.deepcopy,
]


def modules() -> list[types.ModuleType]:
    found = []
    for each in pkgutil.walk_packages(composefs_async.__path__, "composefs_async."):
        if "__main__" not in each.name:
            try:
                found.append(importlib.import_module(each.name))
            except ImportError:  # of something optional
                continue
    return found


CLASSES = sorted(
    {
        value
        for module in modules()
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__.startswith("composefs_async")
    },
    key=lambda each: (each.__module__, each.__qualname__),
)
ERRORS = [each for each in CLASSES if issubclass(each, errors.ComposefsError | RuntimeError)]
VALUES = [
    each
    for each in CLASSES
    if dataclasses.is_dataclass(each)
    and each.__dataclass_params__.frozen  # type: ignore[attr-defined]
    and not each.__name__.startswith("_")
    and each.__module__.split(".")[1] in {"results", "reports", "findings", "progress", "digest"}
]


def sample(annotation: Any) -> Any:
    """A value of a type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return sample(arguments[0])
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        return tuple(sample(each) for each in arguments if each is not ...)
    if origin in (list, set, frozenset):
        return origin([sample(arguments[0])])
    if origin in (dict, Mapping):
        return {sample(arguments[0]): sample(arguments[1])}
    simple = {
        str: "text\udcff",
        int: 7,
        float: 0.5,
        bool: True,
        bytes: b"x",
        ObjectId: ObjectId(bytes(32)),
        type(None): None,
    }
    if annotation in simple:
        return simple[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return list(annotation)[-1]
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return annotation(
            **{each.name: sample(hints[each.name]) for each in dataclasses.fields(annotation) if each.init}
        )
    return None


def make(kind: type[BaseException]) -> BaseException:
    hints = typing.get_type_hints(kind.__init__)
    if kind.__init__ in (Exception.__init__, RuntimeError.__init__, ValueError.__init__):
        return kind("a message", 7)
    given = {name: sample(hints[name]) for name in inspect.signature(kind).parameters}
    return kind(**given)


def state(error: BaseException) -> tuple[Any, ...]:
    names = ("errno", "strerror", "filename", "filename2") if isinstance(error, OSError) else ()
    return type(error), error.args, str(error), vars(error), [getattr(error, name) for name in names]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_come_back_as_they_were(kind: type[BaseException]) -> None:
    error = make(kind)
    error.add_note("a note")
    if isinstance(error, OSError):
        error.filename = "elsewhere"
    for way in WAYS:
        assert state(way(error)) == state(error)


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_values_come_back_as_they_were(kind: type[Any]) -> None:
    value = sample(kind)
    for way in WAYS:
        assert way(value) == value
        assert type(way(value)) is kind


@pytest.mark.parametrize("value", [ObjectId(bytes(64)), Algorithm.SHA256], ids=repr)
def test_digests_come_back_as_they_were(value: object) -> None:
    for way in WAYS:
        assert (way(value), type(way(value))) == (value, type(value))


def test_the_walk_sees_them() -> None:
    assert len(ERRORS) >= 40
    assert len(VALUES) >= 25


def _fail(name: str) -> None:
    raise make(getattr(errors, name))


@pytest.mark.usefixtures("installed_first")
def test_a_pool_of_processes_raises_what_its_worker_raised() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name in errors.__all__:
            error = pool.submit(_fail, name).exception(60)
            assert type(error) is getattr(errors, name), repr(error)
            assert str(error) == str(make(type(error)))
