"""The builder makes the writer's bytes from handles and names in any order."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import InvalidNameError
from composefs_async.results import StoredObject, StoreOutcome
from composefs_async.splitstream import OCI_CONFIG, SplitstreamBuilder, SplitstreamWriter

SHA256 = Algorithm.SHA256


def stored(number: int, size: int) -> StoredObject:
    return StoredObject(ObjectId(bytes([number]) * 32), size, StoreOutcome.STORED)


def expected(make_sink: Any) -> bytes:
    writer = SplitstreamWriter(make_sink(SHA256), OCI_CONFIG)
    for name, number in (("alpha", 8), ("beta", 7), ("gamma", 8)):
        writer.add_named_stream_ref(name, stored(number, 0).id)
    writer.write_inline(b"head")
    writer.write_external(b"content")
    for number, size in ((1, 10), (2, 20), (1, 10)):
        writer.write_reference(stored(number, size).id)
        writer.add_external_size(size)
    writer.write_inline(b"tail")
    return writer.done()


@pytest.mark.parametrize("order", ["before", "in turn", "reversed"])
def test_builder_makes_the_bytes_of_the_writer(order: str, make_sink: Any) -> None:
    builder = SplitstreamBuilder(make_sink(SHA256), OCI_CONFIG)
    handles: list[Future[StoredObject]] = [Future(), Future(), Future()]
    results = list(zip(handles, [stored(1, 10), stored(2, 20), stored(1, 10)], strict=True))
    if order == "before":
        for handle, result in results:
            handle.set_result(result)
    builder.add_named_stream_ref("gamma", stored(9, 0).id)
    builder.push_inline(b"he")
    builder.push_inline(b"")
    builder.push_inline(b"ad")
    builder.push_external(b"content")
    for handle in handles:
        builder.push_external(handle)
    builder.push_inline(b"tail")
    for name, number in (("gamma", 8), ("beta", 7), ("alpha", 8)):
        builder.add_named_stream_ref(name, stored(number, 0).id)
    assert list(builder.pending) == ([] if order == "before" else handles)
    for handle, result in {"before": [], "in turn": results, "reversed": results[::-1]}[order]:
        handle.set_result(result)
    assert builder.finish() == expected(make_sink)


def test_builder_takes_objects_that_are_in_place() -> None:
    builder, writer = SplitstreamBuilder(SHA256, 0), SplitstreamWriter(SHA256, 0)
    builder.push_external(stored(3, 30))
    writer.write_reference(stored(3, 30).id)
    writer.add_external_size(30)
    assert builder.finish() == writer.done()


def test_builder_lets_done_handles_go() -> None:
    builder = SplitstreamBuilder(SHA256, 0)
    first, second, third = (Future[StoredObject]() for _ in range(3))
    builder.push_external(first)
    builder.push_external(second)
    first.set_result(stored(1, 1))
    assert builder.pending == (first, second)
    builder.push_external(third)
    assert builder.pending == (second, third)


def test_failed_handle_stops_the_finish_and_stays() -> None:
    builder = SplitstreamBuilder(SHA256, 0)
    handle = Future[StoredObject]()
    builder.push_external(handle)
    handle.set_exception(OSError(28, "No space left on device", "objects"))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            builder.finish()
    assert builder.pending == (handle,)


def test_names_are_checked_at_the_finish() -> None:
    builder = SplitstreamBuilder(SHA256, 0)
    builder.add_named_stream_ref("a\0", stored(1, 0).id)
    with pytest.raises(InvalidNameError):
        builder.finish()
