"""What each layer adds alone, and shares with other layers, counted against the streams themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import Algorithm
from composefs_async.naming import layer_stream
from composefs_async.oci import Platform, pull
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.layer_sizes import _commands, layer_usage, layer_usage_async
from composefs_async.repository import Repository

LAYOUTS = Path(__file__).parents[1] / "vectors" / "layouts"
PLATFORM = Platform("linux", "amd64")
pytestmark = pytest.mark.anyio


def objects(repo: Repository, layer: str) -> dict[str, int]:
    """Sizes by id of what the stream of a layer lists."""
    with repo.open_stream(layer_stream(layer)) as reader:
        return {each.hex(): len(repo.read_object(each)) for each in reader.object_refs}


async def test_bytes_are_counted_once_and_by_who_lists_them(tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        for name in ("basic", "one"):
            await pull(repo, f"oci:{LAYOUTS}/{name}", tag=name, platform=PLATFORM)
        layers = {each: objects(repo, each) for name in ("basic", "one") for each in open_image(repo, name).layers}
        for name in ("basic", "one"):
            found = await layer_usage_async(repo, name)
            assert [each.name for each in found] == [*open_image(repo, name).layers]
            for each in found:
                others = {key for layer in layers if layer != each.name for key in layers[layer]}
                own = {key: size for key, size in layers[each.name].items() if key not in others}
                common = {key: size for key, size in layers[each.name].items() if key in others}
                assert (each.exclusive.objects, each.exclusive.size) == (len(own), sum(own.values()))
                assert (each.shared.objects, each.shared.size) == (len(common), sum(common.values()))
        assert sum(each.shared.objects for each in layer_usage(repo, "basic")) > 0


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (None, ["", ""]),
        ("nonsense", ["", ""]),
        ([{"created_by": "a"}], ["", ""]),
        ([{"created_by": "a"}, {"created_by": "x", "empty_layer": True}, {"created_by": "b"}], ["a", "b"]),
        ([{"created_by": 7}, {}], ["", ""]),
    ],
)
async def test_commands_are_those_of_layers_that_are_not_empty(
    tmp_path: Path, history: Any, expected: list[str]
) -> None:
    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        await pull(repo, f"oci:{LAYOUTS}/basic", tag="basic", platform=PLATFORM)
        image = open_image(repo, "basic")
        document = json.loads(image.config_raw) | {"history": history}
        assert _commands(replace(image, config_raw=json.dumps(document).encode())) == expected
        assert _commands(replace(image, config=None)) == ["", ""]
