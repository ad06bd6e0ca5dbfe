"""Choosing a manifest for a machine."""

from __future__ import annotations

import platform

import pytest

from composefs_async.errors import ImageNotFoundError, OciError
from composefs_async.oci.platforms import Candidate, Platform, choose, host_platform, parse_platform


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64/v8"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
        ("riscv64", "linux/riscv64"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_host_platform_translates_the_machine_name(
    monkeypatch: pytest.MonkeyPatch, machine: str, expected: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert str(host_platform()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/arm64/v8", Platform("linux", "arm64", "v8")),
        ("linux/x86_64", Platform("linux", "amd64")),
        ("linux/aarch64", Platform("linux", "arm64", "v8")),
        ("windows/amd64", Platform("windows", "amd64")),
    ],
)
def test_platform_is_parsed(text: str, expected: Platform) -> None:
    assert parse_platform(text) == expected


@pytest.mark.parametrize("text", ["", "amd64", "linux/", "/amd64", "linux/a/b/c", "linux/arm 64", "linux/arm64/"])
def test_bad_platform_is_refused(text: str) -> None:
    with pytest.raises(OciError, match="not of the form OS/ARCHITECTURE"):
        parse_platform(text)


def _candidates(*texts: str) -> list[Candidate]:
    """``platform[=digest][+tag]``; the platform ``-`` is none; the digest is the position unless given."""
    found = []
    for position, text in enumerate(texts):
        spec, _, tag = text.partition("+")
        name, _, digest = spec.partition("=")
        wanted = None if name == "-" else Platform(*name.split("/"))
        found.append(Candidate(digest or f"sha256:{position}", wanted, tag or None))
    return found


CHOICES = [
    ("exact", ["linux/arm64", "linux/amd64", "linux/s390x"], "linux/amd64", 1),
    ("first of equals", ["linux/amd64", "linux/amd64"], "linux/amd64", 0),
    ("usual variant is the same as none", ["linux/arm64/v8"], "linux/arm64", 0),
    ("none is the same as the usual variant", ["linux/arm64"], "linux/arm64/v8", 0),
    ("arm without variant is v7", ["linux/arm/v6", "linux/arm"], "linux/arm/v7", 1),
    ("nearest older variant", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "linux/arm/v7", 1),
    ("plain before newer", ["linux/amd64/v3", "linux/amd64"], "linux/amd64", 1),
    ("newer when there is nothing else", ["linux/amd64/v3", "linux/amd64/v2"], "linux/amd64", 1),
    ("variants without order only when none was asked for", ["linux/amd64/odd"], "linux/amd64", 0),
    ("other system", ["windows/amd64", "linux/amd64"], "windows/amd64", 0),
    ("one thing without platform", ["-"], "linux/amd64", 0),
    ("the same thing twice", ["-=sha256:x", "-=sha256:x"], "linux/amd64", 0),
    ("a fit before a thing without platform", ["-", "linux/amd64"], "linux/amd64", 1),
    ("one name beside a nameless", ["linux/amd64", "linux/amd64+a"], "linux/amd64", 0),
    ("two names of the same manifest", ["linux/amd64=sha256:x+a", "linux/amd64=sha256:x+b"], "linux/amd64", 0),
    ("two names of different platforms", ["linux/arm64+a", "linux/amd64+b"], "linux/amd64", 1),
]


@pytest.mark.parametrize(("given", "wanted", "expected"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES])
def test_choice_without_tag(given: list[str], wanted: str, expected: int) -> None:
    candidates = _candidates(*given)
    assert choose(candidates, parse_platform(wanted), what="x", tagged=False) is candidates[expected]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-+t"], 0),
        (["linux/arm64+t", "-+t"], 1),
        (["linux/amd64+t", "linux/amd64+t"], 0),
    ],
)
def test_choice_with_tag(given: list[str], expected: int) -> None:
    candidates = _candidates(*given)
    assert choose(candidates, Platform("linux", "amd64"), what="x", tagged=True) is candidates[expected]


def test_platform_of_this_machine_is_wanted_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    candidates = _candidates("linux/amd64", "linux/s390x")
    assert choose(candidates, None, what="x", tagged=False) is candidates[1]


FAILURES = [
    ([], False, "there are no manifests"),
    (
        ["linux/arm64"],
        True,
        "no manifest for linux/amd64; there are: linux/arm64; choose one with --platform linux/arm64",
    ),
    (
        ["linux/arm64+a", "-+b"],
        False,
        "no manifest for linux/amd64; there are: linux/arm64 (a), no platform, sha256:1 (b); "
        "choose one with --platform linux/arm64",
    ),
    (
        ["-+a", "-+b"],
        False,
        "no manifest for linux/amd64; there are: no platform, sha256:0 (a), no platform, sha256:1 (b); "
        "choose one with a tag, or by its digest",
    ),
    (
        ["unknown/unknown"],
        False,
        "no manifest for linux/amd64; there are: unknown/unknown; choose one with a tag, or by its digest",
    ),
    (["linux/amd64+b", "linux/amd64+a"], False, "several images fit linux/amd64: a, b; say which with a tag"),
]


@pytest.mark.parametrize(("given", "tagged", "reason"), FAILURES)
def test_failure_says_what_there_is_and_a_way_out(given: list[str], tagged: bool, reason: str) -> None:
    ambiguous = reason.startswith("several")
    with pytest.raises(OciError if ambiguous else ImageNotFoundError) as caught:
        choose(_candidates(*given), Platform("linux", "amd64"), what="oci:x", tagged=tagged)
    assert str(caught.value) == f"{'' if ambiguous else 'image not found: '}oci:x: {reason}"


@pytest.mark.parametrize(
    ("have", "wanted"),
    [
        ("linux/arm/v7", "linux/arm/v6"),
        ("linux/amd64/v3", "linux/amd64/v2"),
        ("linux/amd64/odd", "linux/amd64/v2"),
        ("linux/amd64/v2", "linux/amd64/odd"),
    ],
)
def test_variant_that_was_asked_for_is_not_exceeded(have: str, wanted: str) -> None:
    with pytest.raises(ImageNotFoundError, match=f"no manifest for {wanted}"):
        choose(_candidates(have), parse_platform(wanted), what="x", tagged=True)


def test_failure_lists_a_dozen() -> None:
    with pytest.raises(ImageNotFoundError, match=r"linux/m11 and 8 more; choose"):
        choose(_candidates(*(f"linux/m{n}" for n in range(20))), Platform("linux", "amd64"), what="x", tagged=False)
