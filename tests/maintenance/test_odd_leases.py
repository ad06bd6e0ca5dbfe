"""Leases that somebody wrote by hand, leases of very many layers, and objects of the very instant of a lease."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from composefs_async._maintenance import leases, state_dir
from composefs_async._maintenance.gc import shards
from composefs_async.digest import ObjectId
from composefs_async.repository import Repository, state_of

from .garbage import store, stream

DIGEST = f"sha256:{'ab' * 32}"


def lease_file(repo: Repository) -> Path:
    return Path(repo.path, ".composefs-async/leases", f"{DIGEST}.json")


ODD: dict[str, Any] = {
    "started": [math.nan, math.inf, -math.inf, -1, 1 << 63, 1 << 70, 10**400, 1e300, True, None, "7", [], {}],
    "expires": [math.nan, math.inf, -1, 1e300, 253402300800, 10**400, True, None, "7"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ODD.items() for value in values])
def test_a_lease_with_an_odd_number_is_none(key: str, value: object, empty: Repository) -> None:
    stream(empty, "kept", ["kept"], reference="r")
    leases.begin(state_of(empty), DIGEST, "somewhere")
    values = json.loads(lease_file(empty).read_text())
    assert len(empty.leases()) == 1
    lease_file(empty).write_text(json.dumps({**values, key: value}))
    store(empty, "garbage")
    assert empty.leases() == []
    assert empty.gc().objects_removed == 1


@pytest.mark.parametrize("seconds", [0, 253402300799])
def test_the_ends_of_time_are_times(seconds: int, empty: Repository) -> None:
    leases.begin(state_of(empty), DIGEST, "somewhere")
    values = json.loads(lease_file(empty).read_text())
    lease_file(empty).write_text(json.dumps({**values, "expires": seconds, "started": (1 << 63) - 1}))
    assert len(empty.leases()) == (seconds > 0)
    assert empty.gc().objects_removed == 0


def test_many_layers_cost_what_they_are(empty: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = state_dir.write

    def write(state: Any, name: str, content: Any) -> None:
        written.append(len(content))
        real(state, name, content)

    monkeypatch.setattr(state_dir, "write", write)
    monkeypatch.setattr(leases.time, "monotonic", lambda: 0.0)  # no layer is late
    holder = leases.begin(state_of(empty), DIGEST, "somewhere")
    width = empty.algorithm.digest_size
    layers = {f"sha256:{number:064x}": ObjectId(number.to_bytes(width, "big")) for number in range(3200)}
    for diff_id, stream_id in layers.items():
        holder.finished(diff_id, stream_id)
    holder.save()
    assert sum(written) < 24 * written[-1]
    assert empty.leases()[0].layers == layers
    holder.save()
    count = len(written)
    holder.save()
    assert len(written) == count


def test_few_layers_are_written_down_at_once(empty: Repository) -> None:
    holder = leases.begin(state_of(empty), DIGEST, "somewhere")
    for number in range(16):
        holder.finished(f"sha256:{number:064x}", ObjectId(bytes(empty.algorithm.digest_size)))
        assert len(empty.leases()[0].layers) == number + 1


@pytest.mark.parametrize("native", [True, False])
def test_an_object_of_the_very_instant_of_a_lease_is_kept(
    native: bool, empty: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and not shards.NATIVE:
        pytest.skip("there is no native code")
    monkeypatch.setattr(shards, "NATIVE", native)
    (object_id,) = store(empty, "of that instant")
    instant = os.stat(Path(empty.path, "objects", object_id.path)).st_ctime_ns
    objects_fd, width = state_of(empty).objects_fd, empty.algorithm.digest_size
    for since, young in [(instant - 1, True), (instant, True), (instant + 1, False)]:
        found = shards.compare(objects_fd, object_id[0], b"", width, since)
        assert (found.young, found.dead) == ((object_id, b"") if young else (b"", object_id))


def test_gc_keeps_an_object_of_the_very_instant_of_a_lease(empty: Repository) -> None:
    (object_id,) = store(empty, "of that instant")
    instant = os.stat(Path(empty.path, "objects", object_id.path)).st_ctime_ns
    leases.begin(state_of(empty), DIGEST, "somewhere")
    values = json.loads(lease_file(empty).read_text())
    lease_file(empty).write_text(json.dumps({**values, "started": instant}))
    assert empty.gc().objects_removed == 0
    lease_file(empty).write_text(json.dumps({**values, "started": instant + 1}))
    assert empty.gc().objects_removed == 1
