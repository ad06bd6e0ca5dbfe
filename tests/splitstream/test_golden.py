"""Streams made by cfsctl (tests/vectors/splitstream)."""

from __future__ import annotations

import hashlib
from typing import Any

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.splitstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, BytesSource, SplitstreamReader

TYPES = {"oci-layer": OCI_LAYER, "oci-config": OCI_CONFIG, "oci-manifest": OCI_MANIFEST}


def open_golden(name: str, facts: dict[str, Any]) -> SplitstreamReader:
    algorithm = Algorithm.SHA512 if "sha512" in name else Algorithm.SHA256
    content_type = TYPES[facts["stream"].rpartition("-")[0]]
    return SplitstreamReader(BytesSource(facts["data"]), algorithm, content_type, name=name)


def test_golden_streams_are_written_again_with_equal_bytes(golden: Any, rewrite: Any) -> None:
    again = {name: hashlib.sha256(rewrite(facts["data"])).hexdigest() for name, facts in golden.items()}
    assert again == {name: facts["sha256"] for name, facts in golden.items()}


def test_golden_layers_hold_what_the_other_program_says(golden: Any) -> None:
    layers = {name: facts for name, facts in golden.items() if "size" in facts}
    found: dict[str, dict[str, int]] = {}
    for name, facts in layers.items():
        reader = open_golden(name, facts)
        chunks = list(reader.chunks())
        external = [chunk for chunk in chunks if isinstance(chunk, ObjectId)]
        inline_size = sum(len(chunk) for chunk in chunks if not isinstance(chunk, ObjectId))
        found[name] = {
            "size": reader.stream_size,
            "inline_size": inline_size,
            "external_objects": len(external),
            "external_size": reader.stream_size - inline_size,
        }
    assert len(found) == 16
    assert found == {name: {key: layers[name][key] for key in facts} for name, facts in found.items()}


def test_golden_names_lead_to_the_layers(golden: Any) -> None:
    for flavour in ("g3-sha256", "g3-sha512", "g4-sha256-v1", "g4-sha512-v1"):
        layers = {
            facts["stream"].removeprefix("oci-layer-"): facts["id"]
            for name, facts in golden.items()
            if name.startswith(f"{flavour}-layer-") and name.endswith(("0.splitstream", "1.splitstream"))
        }
        for kind in ("config", "manifest"):
            name = f"{flavour}-{kind}.splitstream"
            named = {key: value.hex() for key, value in open_golden(name, golden[name]).named_refs.items()}
            assert {key: named[key] for key in layers} == layers


def test_golden_content_merges_to_what_was_imported(golden: Any, golden_objects: Any) -> None:
    merged = {name: facts["merged_sha256"] for name, facts in golden.items() if "merged_sha256" in facts}
    assert len(merged) == 8
    found = {
        name: hashlib.sha256(open_golden(name, golden[name]).payload(golden_objects)).hexdigest() for name in merged
    }
    assert found == merged
