"""Random sequences of what is done to a repository, some of it stopped half-way, compared with a model of its names.

Whatever was done, each name that should be there leads to something whole, nothing else has a name, a dry run of gc
foretells the run, and gc leaves exactly what is needed, and what leases keep.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from composefs_async.digest import ObjectId
from composefs_async.errors import StreamNotFoundError
from composefs_async.naming import tag_reference
from composefs_async.oci import catalogue
from composefs_async.repository import Repository

from ..maintenance import garbage
from ..maintenance.crashing import IMAGES, Contents, Images, interrupt, leftovers, make, problems
from ..maintenance.damaging import flip, remove

TAGS = ("one", "two/three", "four")
IMAGE = "images/refs/an/image"
images = st.sampled_from(sorted(IMAGES))
tags = st.sampled_from(TAGS)
steps = st.one_of(st.none(), st.integers(1, 12), st.integers(1, 60))
"""Where an operation is stopped; None: nowhere."""


def path_of(tag: str) -> str:
    return f"streams/refs/{tag_reference(tag)}"


class Model(RuleBasedStateMachine):
    images: ClassVar[Images]
    whole: ClassVar[Path]
    """A repository with all images, each under its own name."""

    @initialize()
    def begin(self) -> None:
        self.work = Path(tempfile.mkdtemp())
        self.path = make(self.work / "repo")
        self.ids = Contents.read(self.whole).names
        self.names: dict[str, ObjectId] = {}

    def teardown(self) -> None:
        if hasattr(self, "path"):
            self.collect(None, leases=False)
            found = Contents.read(self.path)
            assert (found.objects, leftovers(self.path)) == (found.needed, [])
            shutil.rmtree(self.work)

    def do(self, operation: Callable[[Repository], object], at: int | None, after: dict[str, ObjectId]) -> None:
        """Something that makes the names *after* of those that are there, or some of the way if it is stopped."""

        def opened() -> None:
            with Repository.open_path(self.path) as repo:
                operation(repo)

        before = self.names
        if at is None:
            opened()
            self.names = after
        elif not interrupt(opened, at):
            self.names = after
        else:
            self.names = Contents.read(self.path).names
            assert self.names.items() <= before.items() | after.items()
            assert self.names.keys() >= before.keys() & after.keys()
            assert {*self.names.values()} >= {*before.values()} & {*after.values()}

    def id_of(self, image: str) -> ObjectId:
        return self.ids[path_of(image)]

    # -- what is done --------------------------------------------------------------------------

    @rule(image=images, tag=tags, at=steps)
    def pull(self, image: str, tag: str, at: int | None) -> None:
        self.do(
            lambda repo: self.images.pull_into(repo, image, tag), at, {**self.names, path_of(tag): self.id_of(image)}
        )

    @rule(image=images, tag=tags, at=steps)
    def tag(self, image: str, tag: str, at: int | None) -> None:
        if self.id_of(image) in self.names.values():
            digest = self.images.digests[image]
            work = partial(catalogue.tag, manifest_digest=digest, name=tag)
            self.do(work, at, {**self.names, path_of(tag): self.id_of(image)})

    @rule(tag=tags, at=steps)
    def untag(self, tag: str, at: int | None) -> None:
        if path_of(tag) in self.names:
            after = {name: each for name, each in self.names.items() if name != path_of(tag)}
            self.do(lambda repo: catalogue.untag(repo, tag), at, after)
        else:
            with Repository.open_path(self.path) as repo, pytest.raises(StreamNotFoundError):
                catalogue.untag(repo, tag)

    @rule(tag=tags, new=tags, at=steps)
    def rename(self, tag: str, new: str, at: int | None) -> None:
        if path_of(tag) in self.names:
            after = {name: each for name, each in self.names.items() if name != path_of(tag)}
            old, target = tag_reference(tag), tag_reference(new)
            work = lambda repo: repo.rename_reference("streams", old, target, replace=True)  # noqa: E731
            self.do(work, at, {**after, path_of(new): self.names[path_of(tag)]})

    @rule(content=st.sampled_from(["first", "second"]), at=steps)
    def image(self, content: str, at: int | None) -> None:
        with Repository.open_path(self.whole) as repo:
            object_id = garbage.image(repo, [content])
        self.do(lambda repo: garbage.image(repo, [content], "an/image"), at, {**self.names, IMAGE: object_id})

    @rule(at=steps)
    def store(self, at: int | None) -> None:
        self.do(lambda repo: [repo.ensure_object(bytes([n]) * 100) for n in range(5)], at, self.names)

    @rule(at=steps, leases=st.booleans())
    def collect(self, at: int | None, leases: bool) -> None:
        with Repository.open_path(self.path) as repo:
            for each in [] if leases else repo.leases():
                repo.drop_lease(each.manifest_digest)
            if at is None:
                foretold = repo.gc(dry_run=True)
                assert repo.gc() == foretold
                return
        self.do(Repository.gc, at, self.names)

    @rule(number=st.integers(0, 1000), missing=st.booleans(), at=steps)
    def repair(self, number: int, missing: bool, at: int | None) -> None:
        """What has a name is hurt, and whole again after a repair, at the latest after a second one."""
        if needed := sorted(Contents.read(self.path).needed):
            victim = self.path / "objects" / needed[number % len(needed)]
            (remove if missing else flip)(victim)
            if at is None or interrupt(self.mend, at):
                self.mend()

    def mend(self) -> None:
        with Repository.open_path(self.path) as repo:
            assert repo.repair([self.whole]).unrepaired == ()

    # -- what holds ----------------------------------------------------------------------------

    @invariant()
    def every_name_is_there_and_whole(self) -> None:
        if hasattr(self, "path"):
            assert Contents.read(self.path).names == self.names

    @rule()
    def check(self) -> None:
        assert problems(self.path) == []


@pytest.mark.usefixtures("without_flushes")
@pytest.mark.parametrize(
    ("examples", "length"), [(20, 15), pytest.param(200, 30, marks=[pytest.mark.stress, pytest.mark.timeout(3600)])]
)
def test_any_sequence_leaves_what_it_should(
    tmp_path_factory: pytest.TempPathFactory, examples: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path_factory.mktemp("model")
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    Model.images, Model.whole = Images(directory / "images"), make(directory / "whole")
    for name in IMAGES:
        Model.images.pull(Model.whole, name)
    everyday = examples < 100
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Model,
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            derandomize=everyday,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[each for each in hypothesis.Phase if not everyday or each is not hypothesis.Phase.shrink],
        ),
    )
