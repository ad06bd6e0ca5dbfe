"""What a check of images finds besides that of the repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from composefs_async.oci import image_fsck
from composefs_async.oci.importing.pull import pull
from composefs_async.repository import Repository

from ..maintenance.corruptions import OCI_CASES, OciCase, Victim

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim.make(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("case", OCI_CASES, ids=[case.name for case in OCI_CASES])
def test_damage_to_an_image_is_found_exactly(case: OciCase, sound: Victim, tmp_path: Path) -> None:
    victim = sound.copy(tmp_path)
    findings = case.damage(victim)
    with Repository.open_path(victim.path) as repo:
        found = image_fsck.fsck(repo, *case.arguments)
        assert found == image_fsck.OciFsckResult(repo.fsck(), 1, 1, tuple(findings))
    assert not found.ok


def test_an_image_is_not_ok_in_a_repository_that_is_not(sound: Victim, tmp_path: Path) -> None:
    victim = sound.copy(tmp_path)
    victim.file("streams/file")
    with Repository.open_path(victim.path) as repo:
        found = image_fsck.fsck(repo)
    assert (found.ok, found.images_checked, found.images_corrupted, found.findings) == (False, 1, 0, ())


@pytest.mark.parametrize("layer", ["present", "lost"])
def test_artifacts(layer: str, tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        anyio.run(pull, repo, f"oci:{LAYOUTS}/artifact")
        [(_, manifest)] = repo.named_streams("oci")
        with repo.open_stream(manifest) as reader:
            refs = {name: each for name, each in reader.named_refs.items() if not name.startswith("config:")}
        digest, object_id = min(refs.items())
        assert image_fsck.fsck(repo).ok
        if layer == "lost":
            (tmp_path / "repo" / "objects" / object_id.path).unlink()
        found = image_fsck.fsck(repo)
    kinds = [(each.kind, each.digest) for each in found.findings]
    assert kinds == ([("artifact-layer-object-missing", digest)] if layer == "lost" else [])


@pytest.mark.anyio
async def test_the_async_form_finds_the_same(sound: Victim) -> None:
    async with await Repository.open_path_async(sound.path) as repo:
        found = await image_fsck.fsck_async(repo, "one", metadata_only=True)
        assert found == image_fsck.OciFsckResult(await repo.fsck_async(metadata_only=True), 1)
    assert replace(found.repo, objects_checked=0).ok
