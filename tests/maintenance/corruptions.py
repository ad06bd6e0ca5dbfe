"""A sound repository, and everything that can go wrong with it: what is done to it, and what a check must find.

Each case is a function that damages a `Victim` and returns the findings, all of them, in the order of the report.
Together they have every kind in `composefs_async.findings.KINDS`.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async import fsverity
from composefs_async.digest import Algorithm, ObjectId, sha256_content_digest
from composefs_async.findings import Finding
from composefs_async.naming import config_stream, layer_stream, manifest_stream
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.platforms import Platform
from composefs_async.repository import Repository, state_of
from composefs_async.splitstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST

from ..maintenance.machine import Machine

__all__ = ["ANY", "CASES", "OCI_CASES", "Case", "OciCase", "Victim", "damaged"]

Damage = Callable[["Victim"], list[Finding]]
NOWHERE = "cc" + "dd" * 31


def archive(seed: int, *sizes: int) -> bytes:
    """With all parent directories: composefs-rs refuses layers without."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name in ("usr", "usr/lib"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            made.addfile(directory)
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"usr/lib/s{seed}f{number}")
            info.size = size
            made.addfile(info, io.BytesIO(random.Random(100 * seed + number).randbytes(size)))
    return out.getvalue()


@dataclass
class Victim:
    """One image of two layers with the tag ``one``, in a repository of its own."""

    path: Path
    manifest: str
    config: str
    diff_ids: list[str]
    image: str
    tars: list[bytes] = field(repr=False)
    machine: Machine | None = None
    sources: list[str] = field(default_factory=list)
    """That have what it needs."""

    @classmethod
    def make(cls, directory: Path, algorithm: Algorithm = Algorithm.SHA256) -> Victim:
        writer = OciLayoutWriter(directory / "layout")
        tars = [archive(1, 10, 65, 4096, 4097), archive(2, 70, 600_000, 3 << 20)]
        layers = [writer.add_layer(tars[0], "gzip"), writer.add_layer(tars[1], "zstd")]
        digest = writer.add_image(layers, platform=Platform("linux", "amd64")).digest
        path = directory / "repo"
        with Repository.init(path, algorithm=algorithm, insecure=True) as repo:
            pulled = anyio.run(partial(pull, repo, f"oci:{directory}/layout", tag="one"))
            with repo.open_stream(manifest_stream(digest)) as reader:
                [config] = [name.removeprefix("config:") for name in reader.named_refs if name.startswith("config:")]
        [image] = os.listdir(path / "images")
        sources = [str(path), f"oci:{directory}/layout"]
        return cls(path, digest, config, [layer.diff_id for layer in pulled.layers], image, tars, sources=sources)

    def copy(self, directory: Path) -> Victim:
        path = Path(shutil.copytree(self.path, directory / "victim", symlinks=True))
        return replace(self, path=path, sources=[*self.sources])

    def keep(self) -> None:
        """Make a source of what is there now."""
        self.sources.append(str(shutil.copytree(self.path, self.path.with_name("kept"), symlinks=True)))

    # -- names and files -----------------------------------------------------------------------

    @property
    def layers(self) -> list[str]:
        """Paths of the layers' streams."""
        return [f"streams/{layer_stream(diff_id)}" for diff_id in self.diff_ids]

    @property
    def config_path(self) -> str:
        return f"streams/{config_stream(self.config)}"

    @property
    def manifest_path(self) -> str:
        return f"streams/{manifest_stream(self.manifest)}"

    def id_of(self, link: str) -> ObjectId:
        return ObjectId.from_path(os.readlink(self.path / link))

    def objects_of(self, link: str) -> list[ObjectId]:
        with Repository.open_path(self.path) as repo, repo.open_stream("", self.id_of(link)) as reader:
            return list(reader.object_refs)

    def refs_of(self, link: str) -> dict[str, ObjectId]:
        with Repository.open_path(self.path) as repo, repo.open_stream("", self.id_of(link)) as reader:
            return dict(reader.named_refs)

    def object(self, object_id: ObjectId) -> Path:
        return self.path / "objects" / object_id.path

    def overwrite(self, object_id: ObjectId, content: bytes) -> str:
        """Returns its digest then, in hexadecimal."""
        path = self.object(object_id)
        path.unlink()
        path.write_bytes(content)
        return fsverity.digest(content, object_id.algorithm).hex()

    def store(self, content: bytes) -> ObjectId:
        with Repository.open_path(self.path) as repo:
            return repo.ensure_object(content).id

    def link(self, link: str, target: str) -> str:
        path = self.path / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return link

    def link_to(self, link: str, object_id: ObjectId) -> str:
        return self.link(link, f"../objects/{object_id.path}")

    def stream(self, name: str, content: bytes, refs: dict[str, ObjectId] | None = None, inline: bool = True) -> bytes:
        """Publish a stream, and return its file."""
        with Repository.open_path(self.path) as repo:
            writer = repo.create_stream(OCI_LAYER)
            for key, object_id in (refs or {}).items():
                writer.add_named_stream_ref(key, object_id)
            writer.write_inline(content) if inline else writer.write_external(content)
            return repo.read_object(repo.write_stream(writer, name))

    def document(self, kind: str, content: bytes, refs: dict[str, ObjectId]) -> str:
        """Publish a config or manifest, and return its digest."""
        digest = sha256_content_digest(content)
        with Repository.open_path(self.path) as repo:
            writer = repo.create_stream({"config": OCI_CONFIG, "manifest": OCI_MANIFEST}[kind])
            for key, object_id in refs.items():
                writer.add_named_stream_ref(key, object_id)
            writer.write_external(content)
            repo.write_stream(writer, {"config": config_stream, "manifest": manifest_stream}[kind](digest))
        return digest

    def rewrite(
        self, config: bytes | None = None, layers: dict[str, ObjectId] | None = None, images: bool = True
    ) -> None:
        """Let the tag mean an image of another config, or of other streams for layers; perhaps without EROFS images."""
        refs = {**self.refs_of(self.config_path), **(layers or {})}
        if not images:
            refs = {name: object_id for name, object_id in refs.items() if not name.startswith("composefs.")}
        raw, manifest = self.payload(self.config_path), self.payload(self.manifest_path)
        if config is not None:
            document = json.loads(manifest)
            document["config"].update(digest=sha256_content_digest(config), size=len(config))
            raw, manifest = config, json.dumps(document).encode()
        digest = self.document("config", raw, refs)
        refs = {name: object_id for name, object_id in refs.items() if name.startswith("sha256:")}
        refs[f"config:{digest}"] = self.id_of(f"streams/{config_stream(digest)}")
        self.tag(self.document("manifest", manifest, refs))

    def tag(self, manifest: str) -> None:
        self.link("streams/refs/oci/one", f"../../{manifest_stream(manifest)}")

    def artifact(self, *, refers: bool = True) -> str:
        """Let the tag mean an artifact with one packed tar, whose digest is returned."""
        packed = gzip.compress(self.tars[0], mtime=0)
        layer = {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": sha256_content_digest(packed),
            "size": len(packed),
        }
        config = self.document("config", b"{}", {})
        descriptor = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2}
        kind = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
        manifest = {**kind, "artifactType": "application/x", "config": descriptor, "layers": [layer]}
        refs = {f"config:{config}": self.id_of(f"streams/{config_stream(config)}")}
        if refers:
            name = layer_stream(layer["digest"])
            self.stream(name, self.tars[0])
            refs[layer["digest"]] = self.id_of(f"streams/{name}")
        self.tag(self.document("manifest", json.dumps(manifest).encode(), refs))
        return layer["digest"]

    def payload(self, link: str) -> bytes:
        return self.object(self.objects_of(link)[0]).read_bytes()

    def file(self, path: str) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_text("x")


@dataclass(frozen=True)
class Case:
    """What is done, and how it counts."""

    damage: Damage
    counters: dict[str, int]
    """By how much the counters of the result differ from those of the sound repository."""
    known: bool
    """composefs-rs finds the same, with the same text."""
    left: tuple[str, ...]
    """Kinds that are found still after a repair from all sources."""
    machine: bool
    """The victim needs one."""

    @property
    def name(self) -> str:
        return self.damage.__name__


CASES: list[Case] = []


@dataclass(frozen=True)
class OciCase:
    """Damage to the image, and what a check of images finds besides that of the repository."""

    damage: Damage
    known: bool
    arguments: tuple[str, ...]
    left: tuple[str, ...]
    machine: bool = False

    @property
    def name(self) -> str:
        return self.damage.__name__


OCI_CASES: list[OciCase] = []


def oci_case(*arguments: str, known: bool = True, left: tuple[str, ...] = ()) -> Callable[[Damage], Damage]:
    def register(damage: Damage) -> Damage:
        OCI_CASES.append(OciCase(damage, known, arguments, left))
        return damage

    return register


def case(
    *, known: bool = False, left: tuple[str, ...] = (), machine: bool = False, **counters: int
) -> Callable[[Damage], Damage]:
    def register(damage: Damage) -> Damage:
        CASES.append(Case(damage, counters, known, left, machine))
        return damage

    return register


@contextmanager
def damaged(
    case: Case | OciCase, sound: Victim, directory: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[Repository, Victim, list[Finding]]]:
    """A copy of the *sound* repository, damaged after it was opened."""
    victim = sound.copy(directory)
    with Repository.open_path(victim.path) as repo:
        victim.machine = Machine(patch) if case.machine else None
        findings = case.damage(victim)
        if victim.machine and victim.machine.protected:
            state = state_of(repo)
            state.secure = state.verity_works = True
        yield repo, victim, findings


# -- meta.json ---------------------------------------------------------------------------------


@case(left=("metadata-parse-failed",))
def metadata_cannot_be_read(v: Victim) -> list[Finding]:
    (v.path / "meta.json").write_text("{")
    return [Finding("metadata-parse-failed", "meta.json", detail=ANY)]


@case(left=("metadata-algorithm-mismatch",))
def metadata_tells_another_algorithm(v: Victim) -> list[Finding]:
    (v.path / "meta.json").write_text('{"version": 1, "algorithm": "fsverity-sha512-12"}')
    fields = {"expected": "fsverity-sha512-12", "measured": "sha256"}
    return [Finding("metadata-algorithm-mismatch", "meta.json", **fields)]


# -- objects -----------------------------------------------------------------------------------


@case(known=True, objects_corrupted=1)
def object_of_a_layer_has_other_content(v: Victim) -> list[Finding]:
    victim = v.objects_of(v.layers[0])[0]
    measured = v.overwrite(victim, b"y" * v.object(victim).stat().st_size)
    return [Finding("object-digest-mismatch", f"objects/{victim.path}", measured=measured)]


@case(known=True, objects_corrupted=1)
def large_object_has_other_content(v: Victim) -> list[Finding]:
    victim = max(v.objects_of(v.layers[1]), key=lambda each: v.object(each).stat().st_size)
    content = bytearray(v.object(victim).read_bytes())
    content[-1] ^= 1
    return [Finding("object-digest-mismatch", f"objects/{victim.path}", measured=v.overwrite(victim, content))]


@case(known=True, objects_checked=1, objects_corrupted=1)
def large_object_that_nothing_needs_has_other_content(v: Victim) -> list[Finding]:
    victim = v.store(bytes(5 << 20))
    return [Finding("object-digest-mismatch", f"objects/{victim.path}", measured=v.overwrite(victim, bytes(2 << 20)))]


@case(objects_corrupted=1, streams_corrupted=1)
def object_is_cut_to_nothing(v: Victim) -> list[Finding]:
    victim = v.objects_of(v.layers[0])[1]
    total = sum(len(tar) for tar in v.tars[:1])
    lost = v.object(victim).stat().st_size
    measured = v.overwrite(victim, b"")
    return [
        Finding("object-digest-mismatch", f"objects/{victim.path}", measured=measured),
        Finding("stream-size-mismatch", v.layers[0], expected=str(total), measured=str(total - lost)),
    ]


@case(known=True, objects_checked=2, objects_corrupted=2)
def names_of_objects_are_none(v: Victim) -> list[Finding]:
    shard = f"objects/{v.id_of(v.layers[0]).path[:2]}"
    v.file(f"{shard}/junk")
    v.file(f"{shard}/ab{'c' * 58}-z")
    return [
        Finding("object-invalid-name", f"{shard}/ab{'c' * 58}-z", detail="Invalid character '-' at position 60"),
        Finding("object-invalid-name", f"{shard}/junk", detail="Invalid string length"),
    ]


_BAD = "Input/output error (os error 5)"
_IS_LINK = "Too many levels of symbolic links (os error 40)"
_NOT_READ = {"detail": "Computing verity digest in userspace", "cause": "it is no regular file"}


@case(known=True, objects_checked=1, objects_corrupted=1)
def object_is_a_directory(v: Victim) -> list[Finding]:
    (v.path / f"objects/cc/{NOWHERE[2:]}").mkdir(parents=True)
    return [Finding("object-verity-failed", f"objects/cc/{NOWHERE[2:]}", **_NOT_READ)]


@case(objects_checked=1, objects_corrupted=1)
def object_is_a_pipe(v: Victim) -> list[Finding]:
    (v.path / "objects/cc").mkdir(exist_ok=True)
    os.mkfifo(v.path / f"objects/cc/{NOWHERE[2:]}")
    return [Finding("object-verity-failed", f"objects/cc/{NOWHERE[2:]}", **_NOT_READ)]


@case(objects_checked=1, objects_corrupted=1)
def object_is_a_link_out_of_the_repository(v: Victim) -> list[Finding]:
    path = v.link(f"objects/cc/{NOWHERE[2:]}", "/etc/passwd")
    return [Finding("object-open-failed", path, detail=_IS_LINK)]


@case(objects_checked=1, objects_corrupted=1)
def object_is_a_link_to_nothing(v: Victim) -> list[Finding]:
    path = v.link(f"objects/cc/{NOWHERE[2:]}", "nothing")
    return [Finding("object-open-failed", path, detail=_IS_LINK)]


@case(known=True, objects_corrupted=1)
def object_of_a_layer_is_a_link_to_itself(v: Victim) -> list[Finding]:
    victim = v.objects_of(v.layers[0])[0]
    v.link(f"objects/{victim.path}", victim.path[3:])
    return [
        Finding("object-open-failed", f"objects/{victim.path}", detail=_IS_LINK),
        Finding("object-check-failed", v.layers[0], object_id=victim, detail=_IS_LINK),
        Finding("object-check-failed", f"images/{v.image}", object_id=victim, detail=_IS_LINK),
    ]


@case(objects_checked=-1, missing_objects=2)
def directory_of_an_object_of_a_layer_is_a_file(v: Victim) -> list[Finding]:
    victim = v.objects_of(v.layers[0])[0]
    shutil.rmtree(v.object(victim).parent)
    v.object(victim).parent.write_text("x")
    return [
        Finding("unexpected-file-type", f"objects/{victim.path[:2]}", detail="RegularFile"),
        Finding("missing-object-ref", v.layers[0], object_id=victim),
        Finding("image-missing-object", f"images/{v.image}", object_id=victim),
    ]


@case(machine=True, objects_corrupted=1)
def object_is_not_protected(v: Victim) -> list[Finding]:
    assert v.machine
    victim = v.objects_of(v.layers[0])[0]
    found = {path.stat().st_ino for path in (v.path / "objects").rglob("*") if path.is_file()}
    v.machine.protected = found - {v.object(victim).stat().st_ino}
    return [Finding("object-verity-missing", f"objects/{victim.path}")]


@case()
def directory_of_objects_is_a_file(v: Victim) -> list[Finding]:
    name = next(name for name in map("{:02x}".format, range(256)) if not (v.path / f"objects/{name}").exists())
    v.file(f"objects/{name}")
    return [Finding("unexpected-file-type", f"objects/{name}", detail="RegularFile")]


@case(objects_checked=1, left=("leftover", "stray-entry"))
def stray_entries_among_objects(v: Victim) -> list[Finding]:
    v.file("objects/.tmp-object-abc")
    v.file("objects/cc/.tmp-object-abc")
    v.file(f"objects/cc/{NOWHERE[2:].upper()}")
    v.file("objects/junk")
    return [
        Finding("leftover", "objects/.tmp-object-abc"),
        Finding("leftover", "objects/cc/.tmp-object-abc"),
        Finding(
            "stray-entry",
            f"objects/cc/{NOWHERE[2:].upper()}",
            detail="its name is not in lower case, so that it is never found",
        ),
        Finding("stray-entry", "objects/junk", detail="it is no directory of objects"),
    ]


# -- names -------------------------------------------------------------------------------------


@case(known=True, streams_checked=1, streams_corrupted=1, images_checked=1, images_corrupted=1)
def names_are_no_links(v: Victim) -> list[Finding]:
    v.file("streams/file")
    (v.path / "images/directory").mkdir()
    return [Finding("entry-not-symlink", "streams/file"), Finding("entry-not-symlink", "images/directory")]


@case(
    known=True,
    streams_checked=1,
    streams_corrupted=1,
    images_checked=1,
    images_corrupted=1,
    broken_links=4,
    left=("broken-symlink",),
)
def links_lead_nowhere(v: Victim) -> list[Finding]:
    lost = ObjectId.from_hex(NOWHERE)
    return [
        Finding("broken-symlink", v.link_to("streams/lost", lost)),
        Finding("broken-symlink", v.link("streams/refs/a/lost", "../../nothing")),
        Finding("broken-symlink", v.link_to(f"images/{NOWHERE}", lost)),
        Finding("broken-symlink", v.link("images/refs/lost", f"../{NOWHERE}")),
    ]


@case(known=True, streams_checked=1)
def link_leads_in_a_circle(v: Victim) -> list[Finding]:
    path = v.link("streams/loop", "loop")
    return [Finding("stat-failed", path, detail=_IS_LINK)]


@case(known=True, left=("stat-failed",))
def reference_leads_in_a_circle(v: Victim) -> list[Finding]:
    path = v.link("streams/refs/loop", "loop")
    return [Finding("stat-failed", path, detail=_IS_LINK)]


@case(streams_checked=2, streams_corrupted=2, broken_links=1)
def targets_of_links_are_no_objects(v: Victim) -> list[Finding]:
    v.link("streams/odd", "nothing")
    v.link("streams/other", "../meta.json")
    return [
        Finding("broken-symlink", "streams/odd"),
        Finding("link-target-invalid", "streams/other", detail="../meta.json", expected="../objects/XX/…"),
        Finding("stream-open-failed", "streams/other", detail="Opening stream 'other'", cause=ANY),
    ]


@case(known=True)
def references_are_no_links(v: Victim) -> list[Finding]:
    v.file("streams/refs/file")
    return [Finding("unexpected-file-type", "streams/refs/file", detail="RegularFile")]


@case(streams_checked=1, streams_corrupted=1, left=("link-target-invalid",))
def links_have_other_targets_than_they_should(v: Victim) -> list[Finding]:
    good = f"../objects/{v.id_of(v.layers[0]).path}"
    absolute = f"{v.path}/{good[3:]}"
    v.link("streams/absolute", absolute)
    v.link("streams/refs/a/high", f"../../../streams/{layer_stream(v.diff_ids[0])}")
    v.link("streams/refs/object", f"../{good}")
    return [
        Finding("link-target-invalid", "streams/absolute", detail=absolute, expected=good),
        Finding(
            "link-target-invalid",
            "streams/refs/a/high",
            detail=f"../../../streams/{layer_stream(v.diff_ids[0])}",
            expected=f"../../{layer_stream(v.diff_ids[0])}",
        ),
        Finding(
            "link-target-invalid", "streams/refs/object", detail=f"../{good}", expected=f"../{good.rpartition('/')[2]}"
        ),
    ]


@case(images_checked=-1)
def images_is_a_file(v: Victim) -> list[Finding]:
    shutil.rmtree(v.path / "images")
    v.file("images")
    return [_image_lost(v), Finding("unexpected-file-type", "images", detail="RegularFile")]


@case(left=("leftover",))
def leftovers_beside_meta_json(v: Victim) -> list[Finding]:
    v.link(".symlink-abc", "x")
    v.file(".tmp-object-abc")
    return [Finding("leftover", ".symlink-abc"), Finding("leftover", ".tmp-object-abc")]


# -- streams -----------------------------------------------------------------------------------


@case(known=True, objects_checked=1, streams_checked=1, streams_corrupted=1, left=("stream-open-failed",))
def name_leads_to_what_is_no_stream(v: Victim) -> list[Finding]:
    path = v.link_to("streams/junk", v.store(b"junk"))
    cause = "the file ends inside the header of 32 bytes (splitstream offset 4)"
    return [Finding("stream-open-failed", path, detail="Opening stream 'junk'", cause=cause)]


@case(known=True, objects_checked=-1, missing_objects=2)
def object_of_a_layer_is_missing(v: Victim) -> list[Finding]:
    victim = v.objects_of(v.layers[0])[0]
    v.object(victim).unlink()
    return [
        Finding("missing-object-ref", v.layers[0], object_id=victim),
        Finding("image-missing-object", f"images/{v.image}", object_id=victim),
    ]


@case(known=True, objects_checked=-1, streams_corrupted=1, broken_links=1, missing_objects=2)
def stream_of_a_layer_is_missing(v: Victim) -> list[Finding]:
    victim = v.id_of(v.layers[0])
    v.object(victim).unlink()
    lost = {"name": v.diff_ids[0], "object_id": victim}
    return [
        Finding("missing-named-ref", v.config_path, **lost),
        Finding("broken-symlink", v.layers[0]),
        Finding("missing-named-ref", v.manifest_path, **lost),
    ]


@case(objects_checked=1, streams_checked=1, streams_corrupted=1, left=("stream-open-failed",))
def body_of_a_stream_is_cut(v: Victim) -> list[Finding]:
    file = v.stream("cut", random.Random(0).randbytes(1000))
    v.object(v.id_of("streams/cut")).unlink()
    v.link_to("streams/cut", v.store(file[:-20]))
    cause = f"the stream section ends at {len(file)}, but the file at {len(file) - 20} (splitstream offset 64)"
    return [Finding("stream-open-failed", "streams/cut", detail="Opening stream 'cut'", cause=cause)]


@case(objects_checked=1, streams_checked=1, streams_corrupted=1, left=("stream-content-invalid",))
def body_of_a_stream_does_not_unpack(v: Victim) -> list[Finding]:
    file = bytearray(v.stream("bent", random.Random(0).randbytes(1000)))
    v.object(v.id_of("streams/bent")).unlink()
    file[file.rindex(b"\x28\xb5\x2f\xfd")] = 0  # the magic number of zstd
    v.link_to("streams/bent", v.store(file))
    return [Finding("stream-content-invalid", "streams/bent", detail=ANY)]


@case(objects_checked=1, streams_checked=1, streams_corrupted=1, left=("stream-content-invalid",))
def stream_has_an_object_too_few(v: Victim) -> list[Finding]:
    file = bytearray(v.stream("few", b"z" * 100, inline=False))
    v.object(v.id_of("streams/few")).unlink()
    v.object(fsverity.digest(b"z" * 100, Algorithm.SHA256)).unlink()
    file[56:64] = file[48:56]  # object_refs ends where it begins
    v.link_to("streams/few", v.store(file))
    detail = "external reference 0 is out of range: there are 0 objects, in the unpacked stream (splitstream offset 0)"
    return [Finding("stream-content-invalid", "streams/few", detail=detail)]


@case(objects_checked=1, streams_checked=1, streams_corrupted=1, left=("stream-size-mismatch",))
def stream_claims_another_size(v: Victim) -> list[Finding]:
    file = bytearray(v.stream("long", b"content"))
    v.object(v.id_of("streams/long")).unlink()
    file[104:112] = (99).to_bytes(8, "little")
    v.link_to("streams/long", v.store(file))
    return [Finding("stream-size-mismatch", "streams/long", expected="99", measured="7")]


@case(streams_corrupted=1)
def layer_is_planted_under_a_foreign_diff_id(v: Victim) -> list[Finding]:
    v.link_to(v.layers[0], v.id_of(v.layers[1]))
    expected, measured = v.diff_ids
    return [Finding("stream-digest-mismatch", v.layers[0], expected=expected, measured=measured)]


def lose_tail(v: Victim) -> tuple[str, int]:
    """Of the first layer: what is left, and how much is gone."""
    kept = v.tars[0][: (len(v.tars[0].rstrip(b"\0")) + 511) // 512 * 512] + bytes(1024)
    v.stream(layer_stream(v.diff_ids[0]), kept)
    v.rewrite(layers={v.diff_ids[0]: v.id_of(v.layers[0])})
    return sha256_content_digest(kept), len(v.tars[0]) - len(kept)


@case(objects_checked=3, streams_corrupted=1)
def layer_has_lost_the_tail_of_its_tar(v: Victim) -> list[Finding]:
    measured, lost = lose_tail(v)
    return [Finding("stream-tail-missing", v.layers[0], measured=measured, detail=str(lost))]


@case(machine=True, objects_corrupted=1, streams_corrupted=1)
def block_of_a_stream_cannot_be_read(v: Victim) -> list[Finding]:
    assert v.machine
    victim, name = v.id_of(v.layers[0]), v.layers[0].removeprefix("streams/")
    v.machine.spoil(v.object(victim), v.object(victim).stat().st_size - 1)
    return [
        Finding("object-verity-failed", f"objects/{victim.path}", detail=_NOT_READ["detail"], cause=_BAD),
        Finding("stream-read-failed", v.layers[0], detail=f"Reading stream '{name}'", cause=_BAD),
    ]


@case(objects_checked=5, streams_checked=3, left=("stream-digest-unknown",))
def layer_has_the_name_of_its_packed_form(v: Victim) -> list[Finding]:
    """Which is no damage: pulls of artifacts do that."""
    return [Finding("stream-digest-unknown", f"streams/{layer_stream(v.artifact())}")]


@case(objects_checked=3)
def config_refers_to_another_layer_that_has_no_name(v: Victim) -> list[Finding]:
    v.stream("other", b"other content")
    other = v.id_of("streams/other")
    (v.path / "streams/other").unlink()
    v.rewrite(layers={v.diff_ids[0]: other})
    what = {"name": v.diff_ids[0], "object_id": other, "expected": v.diff_ids[0]}
    detail = f"the content has the digest {sha256_content_digest(b'other content')}"
    return [Finding("named-stream-invalid", v.config_path, **what, detail=detail)]


@case(objects_checked=2)
def config_refers_to_the_other_layer(v: Victim) -> list[Finding]:
    """Which has its own name."""
    other = v.id_of(v.layers[1])
    v.rewrite(layers={v.diff_ids[0]: other})
    what = {"name": v.diff_ids[0], "object_id": other, "expected": v.diff_ids[0]}
    detail = f"the content has the digest {v.diff_ids[1]}"
    return [Finding("named-stream-invalid", v.config_path, **what, detail=detail)]


@case(streams_checked=-1)
def name_of_a_layer_is_lost(v: Victim) -> list[Finding]:
    lost = {"name": v.diff_ids[0], "object_id": v.id_of(v.layers[0]), "expected": v.layers[0]}
    (v.path / v.layers[0]).unlink()
    return [Finding("named-ref-unlinked", path, **lost) for path in (v.config_path, v.manifest_path)]


@case(streams_checked=-1)
def name_of_the_config_is_lost(v: Victim) -> list[Finding]:
    config = {"name": f"config:{v.config}", "object_id": v.id_of(v.config_path), "expected": v.config_path}
    (v.path / v.config_path).unlink()
    return [Finding("named-ref-unlinked", v.manifest_path, **config)]


def _image_lost(v: Victim) -> Finding:
    [(name, image)] = [item for item in v.refs_of(v.config_path).items() if item[0].startswith("composefs.")]
    fields = {"name": name, "object_id": image, "expected": f"images/{image.hex()}"}
    return Finding("named-ref-unlinked", v.config_path, **fields)


@case(images_checked=-1)
def name_of_the_image_is_lost(v: Victim) -> list[Finding]:
    (v.path / "images" / v.image).unlink()
    return [_image_lost(v)]


@case(objects_checked=2, streams_checked=1, left=("image-invalid",))
def stream_refers_to_an_image_that_is_none(v: Victim) -> list[Finding]:
    image = v.store(b"no image")
    v.stream("sealed", b"content", {"composefs.image": image})
    fields = {"name": "composefs.image", "object_id": image}
    return [
        Finding("named-ref-unlinked", "streams/sealed", **fields, expected=f"images/{image.hex()}"),
        Finding("named-image-invalid", "streams/sealed", **fields, detail=ANY),
    ]


# -- images ------------------------------------------------------------------------------------


@case(objects_corrupted=1, images_corrupted=1)
def image_is_damaged(v: Victim) -> list[Finding]:
    image = v.id_of(f"images/{v.image}")
    content = bytearray(v.object(image).read_bytes())
    content[1024] ^= 0xFF
    measured = v.overwrite(image, content)
    return [
        Finding("object-digest-mismatch", f"objects/{image.path}", measured=measured),
        Finding("image-invalid", f"images/{v.image}", detail=ANY),
    ]


@case(objects_checked=1, images_checked=1, images_corrupted=1, left=("image-invalid",))
def image_is_none(v: Victim) -> list[Finding]:
    image = v.store(b"no image")
    return [Finding("image-invalid", v.link_to(f"images/{image.hex()}", image), detail=ANY)]


@case(images_checked=1, images_corrupted=1)
def image_has_the_name_of_another(v: Victim) -> list[Finding]:
    path = v.link_to("images/" + "ab" * 32, ObjectId.from_hex(v.image))
    return [Finding("image-name-mismatch", path, object_id=ObjectId.from_hex(v.image))]


@case(machine=True, objects_corrupted=1, images_corrupted=1)
def block_of_an_image_cannot_be_read(v: Victim) -> list[Finding]:
    assert v.machine
    victim = v.id_of(f"images/{v.image}")
    v.machine.spoil(v.object(victim), 4096)
    return [
        Finding("object-verity-failed", f"objects/{victim.path}", detail=_NOT_READ["detail"], cause=_BAD),
        Finding("image-read-failed", f"images/{v.image}", detail=f"Reading images/{v.image}", cause=_BAD),
    ]


@case(known=True, objects_corrupted=1, images_corrupted=1)
def image_is_a_socket(v: Victim) -> list[Finding]:
    victim, path = v.id_of(f"images/{v.image}"), v.object(v.id_of(f"images/{v.image}"))
    path.unlink()
    with closing(socket.socket(socket.AF_UNIX)) as made:
        directory = os.open(path.parent, os.O_PATH)
        made.bind(f"/proc/self/fd/{directory}/socket")  # a path of less than 108 bytes
        os.close(directory)
    (path.parent / "socket").rename(path)
    cause = "No such device or address (os error 6)"
    [name] = [name for name in v.refs_of(v.config_path) if name.startswith("composefs.")]
    detail = f"checking named ref '{name}': {cause}"
    return [
        Finding("object-open-failed", f"objects/{victim.path}", detail=cause),
        Finding("object-check-failed", v.config_path, object_id=victim, detail=detail),
        Finding("image-open-failed", f"images/{v.image}", detail=cause),
    ]


# -- images of OCI -----------------------------------------------------------------------------


def of_image(kind: str, **fields: str) -> Finding:
    return Finding(kind, "streams/refs/oci/one", name="one", **fields)


@oci_case()
def manifest_has_no_stream(v: Victim) -> list[Finding]:
    v.object(v.id_of(v.manifest_path)).unlink()
    detail = f"Opening stream '{manifest_stream(v.manifest)}'"
    return [of_image("manifest-read-failed", detail=detail, cause=ANY)]


@oci_case()
def manifest_has_no_object(v: Victim) -> list[Finding]:
    [document] = v.objects_of(v.manifest_path)
    v.object(document).unlink()
    return [of_image("manifest-read-failed", detail=f"Reading object {document.text} into memory", cause=ANY)]


@oci_case()
def manifest_is_another(v: Victim) -> list[Finding]:
    [document] = v.objects_of(v.manifest_path)
    v.overwrite(document, b"{}")
    return [of_image("manifest-digest-mismatch", expected=v.manifest, measured=sha256_content_digest(b"{}"))]


@oci_case(known=False, left=("manifest-parse-failed",))
def manifest_is_no_manifest(v: Victim) -> list[Finding]:
    v.tag(v.document("manifest", b"{}", {}))
    return [of_image("manifest-parse-failed", detail="Parsing manifest", cause=ANY)]


@oci_case(left=("config-ref-missing",))
def manifest_does_not_refer_to_its_config(v: Victim) -> list[Finding]:
    v.document("manifest", v.payload(v.manifest_path), {})
    return [of_image("config-ref-missing", digest=v.config)]


@oci_case()
def config_has_no_stream(v: Victim) -> list[Finding]:
    v.object(v.id_of(v.config_path)).unlink()
    return [of_image("config-read-failed", detail=f"Opening stream '{config_stream(v.config)}'", cause=ANY)]


@oci_case()
def config_has_no_object(v: Victim) -> list[Finding]:
    [document] = v.objects_of(v.config_path)
    v.object(document).unlink()
    return [of_image("config-read-failed", detail=f"Reading object {document.text} into memory", cause=ANY)]


@oci_case()
def config_is_another(v: Victim) -> list[Finding]:
    [document] = v.objects_of(v.config_path)
    v.overwrite(document, b"{}")
    return [of_image("config-digest-mismatch", expected=v.config, measured=sha256_content_digest(b"{}"))]


@oci_case(known=False, left=("config-parse-failed",))
def config_is_no_config(v: Victim) -> list[Finding]:
    v.rewrite(config=b"[]")
    return [of_image("config-parse-failed", detail="Parsing config", cause=ANY)]


@oci_case(left=("layer-ref-missing",))
def config_does_not_refer_to_its_layers(v: Victim) -> list[Finding]:
    v.document("config", v.payload(v.config_path), {})
    config = v.id_of(v.config_path)
    refs = {**v.refs_of(v.manifest_path), f"config:{v.config}": config}
    v.document("manifest", v.payload(v.manifest_path), refs)
    return [of_image("layer-ref-missing", digest=diff_id) for diff_id in v.diff_ids]


@oci_case()
def layer_has_no_name(v: Victim) -> list[Finding]:
    (v.path / v.layers[0]).unlink()
    return [of_image("layer-stream-missing", digest=v.diff_ids[0])]


@oci_case()
def name_of_a_layer_leads_elsewhere(v: Victim) -> list[Finding]:
    v.link(v.layers[0], "../meta.json")
    detail = f"Checking if stream '{layer_stream(v.diff_ids[0])}' exists"
    return [of_image("layer-check-failed", digest=v.diff_ids[0], detail=detail)]


@oci_case()
def layer_has_no_stream(v: Victim) -> list[Finding]:
    lost = v.id_of(v.layers[0])
    v.object(lost).unlink()
    return [of_image("layer-object-missing", digest=v.diff_ids[0], detail=f"Opening object {lost.text}", cause=ANY)]


@oci_case(known=False)
def layer_is_planted(v: Victim) -> list[Finding]:
    layer_is_planted_under_a_foreign_diff_id(v)
    detail = f"the content has the digest {v.diff_ids[1]}"
    return [of_image("layer-digest-mismatch", digest=v.diff_ids[0], detail=detail)]


@oci_case(known=False)
def layer_has_lost_its_tail(v: Victim) -> list[Finding]:
    _, lost = lose_tail(v)
    detail = f"the last {lost} bytes of the tar, all zeros, were not kept"
    return [of_image("layer-tail-missing", digest=v.diff_ids[0], detail=detail)]


@oci_case(known=False)
def layer_is_another_that_has_no_name(v: Victim) -> list[Finding]:
    [finding] = config_refers_to_another_layer_that_has_no_name(v)
    return [of_image("layer-digest-mismatch", digest=v.diff_ids[0], detail=finding.detail)]


@oci_case(left=("seal-image-missing",))
def image_of_the_label_is_not_there(v: Victim) -> list[Finding]:
    config = json.loads(v.payload(v.config_path))
    config.setdefault("config", {})["Labels"] = {"containers.composefs.fsverity": NOWHERE}
    v.rewrite(config=json.dumps(config).encode())
    return [of_image("seal-image-missing", digest=NOWHERE, detail=f"Opening image '{NOWHERE}'", cause=ANY)]


@oci_case(left=("artifact-layer-ref-missing", "stream-digest-unknown"))
def artifact_does_not_refer_to_its_layer(v: Victim) -> list[Finding]:
    v.artifact()
    return [of_image("artifact-layer-ref-missing", digest=v.artifact(refers=False))]


@oci_case(left=("stream-digest-unknown",))
def layer_of_an_artifact_has_no_stream(v: Victim) -> list[Finding]:
    digest = v.artifact()
    v.keep()
    lost = v.id_of(f"streams/{layer_stream(digest)}")
    v.object(lost).unlink()
    return [of_image("artifact-layer-object-missing", digest=digest, detail=f"Opening object {lost.text}", cause=ANY)]


@oci_case(known=False)
def image_is_not_there(v: Victim) -> list[Finding]:
    (v.path / "images" / v.image).unlink()
    return [of_image("image-missing", object_id=ObjectId.from_hex(v.image), detail=ANY)]


@oci_case(left=("invalid-ref-name",))
def tag_begins_with_an_at_sign(v: Victim) -> list[Finding]:
    (v.path / "streams/refs/oci/one").rename(v.path / "streams/refs/oci/@one")
    return [Finding("invalid-ref-name", "streams/refs/oci/@one", name="@one")]


@oci_case("two", left=("ref-resolve-failed",))
def tag_that_is_asked_for_is_not_there(v: Victim) -> list[Finding]:
    return [Finding("ref-resolve-failed", "streams/refs/oci", name="two", detail="OCI reference not found: two")]


class _Any(str):
    """Equal to every text that is not empty."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and bool(other)


ANY = _Any("…")
