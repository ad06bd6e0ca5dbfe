"""Which of several manifests fits a machine; no I/O.

Owns platform values, their spelling and order of preference, and the texts that say what there was to
choose from.  Does not read documents: whoever calls `choose` brings the candidates.

Decisions where the OCI specification leaves room:

* A platform that was not asked for is never taken, also not when it is the only one there.
* Something without a platform (an artifact) is taken when nothing else was meant: it is alone, or tagged.
* Of equal fits the first wins, except that two *names* without a tag to choose between them are an error.
"""

from __future__ import annotations

import platform as machine
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import ImageNotFoundError, OciError

__all__ = ["Candidate", "Platform", "choose", "host_platform", "parse_platform"]

# What `uname -m` says, as OCI (that is Go's GOARCH, GOARM) spells it.
_MACHINES: dict[str, tuple[str, str | None]] = {
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "i386": ("386", None),
    "i486": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "loongarch64": ("loong64", None),
    "mips64": ("mips64" if sys.byteorder == "big" else "mips64le", None),
    "mips": ("mips" if sys.byteorder == "big" else "mipsle", None),
}
# What is meant when a platform has no variant (github.com/containerd/platforms, normalizeArch).
_BASELINES = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
_PART = re.compile(r"[A-Za-z0-9_.-]+")
_VARIANT_NUMBER = re.compile(r"v([0-9]{1,4})")
_LISTED = 12  # as many candidates as an error message lists


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest is built for, in Go's spelling: ``linux``, ``amd64``."""

    os: str
    architecture: str
    variant: str | None = None
    """Variant of the processor, such as ``v7``; None means the architecture's usual one."""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One manifest to choose from."""

    digest: str
    platform: Platform | None
    """None if nothing tells it, as is usual for artifacts."""
    tag: str | None = None
    """Its name in the image directory."""

    def __str__(self) -> str:
        named = f" ({self.tag})" if self.tag else ""
        return f"{self.platform or f'no platform, {self.digest}'}{named}"


def host_platform() -> Platform:
    """The platform of this machine.  The processor's level on amd64 is not probed: its variant is None."""
    name = machine.machine().lower()
    architecture, variant = _MACHINES.get(name, (name, None))
    return Platform(sys.platform, architecture, variant)


def parse_platform(text: str) -> Platform:
    """Parse ``OS/ARCHITECTURE[/VARIANT]``; names as `uname -m` spells them (``linux/x86_64``) are translated.

    Raises:
        OciError: *text* is anything else.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(map(_PART.fullmatch, parts)):
        raise OciError(f"platform {text!r}", "not of the form OS/ARCHITECTURE[/VARIANT], such as linux/arm64/v8")
    architecture, variant = _MACHINES.get(parts[1], (parts[1], None))
    return Platform(parts[0], architecture, parts[2] if len(parts) == 3 else variant)


def choose(candidates: Sequence[Candidate], wanted: Platform | None, *, what: str, tagged: bool) -> Candidate:
    """The candidate that fits *wanted* best, or this machine if that is None.

    Args:
        what: where the candidates are, for error messages.
        tagged: the candidates all carry a tag that was asked for.

    Raises:
        ImageNotFoundError: none fits; the message lists what there is.
        OciError: several do, and a tag has to tell which.
    """
    if not candidates:
        raise ImageNotFoundError(what, reason="there are no manifests")
    target = wanted or host_platform()
    ranked = [
        (rank, candidate)
        for candidate in candidates
        if candidate.platform and (rank := _rank(candidate.platform, target)) is not None
    ]
    if ranked:
        best = min(rank for rank, _ in ranked)
        return _only_name([candidate for rank, candidate in ranked if rank == best], target, what)
    neutral = [candidate for candidate in candidates if candidate.platform is None]
    if len({candidate.digest for candidate in neutral}) == 1 and (tagged or len(neutral) == len(candidates)):
        return neutral[0]
    raise ImageNotFoundError(what, reason=_no_fit(candidates, target))


def _only_name(fitting: list[Candidate], target: Platform, what: str) -> Candidate:
    """The first, unless different images of different names fit equally well."""
    names = {candidate.tag for candidate in fitting if candidate.tag}
    if len(names) > 1 and len({candidate.digest for candidate in fitting}) > 1:
        raise OciError(what, f"several images fit {target}: {_listing(sorted(names))}; say which with a tag")
    return fitting[0]


def _no_fit(candidates: Sequence[Candidate], target: Platform) -> str:
    listing = _listing(dict.fromkeys(map(str, candidates)))
    # Build tools mark their attestations as unknown/unknown.
    platforms = (candidate.platform for candidate in candidates if candidate.platform)
    foreign = next((found for found in platforms if found.os != "unknown"), None)
    way_out = f"choose one with --platform {foreign}" if foreign else "choose one with a tag, or by its digest"
    return f"no manifest for {target}; there are: {listing}; {way_out}"


def _listing(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _rank(found: Platform, wanted: Platform) -> int | None:
    """How far *found* is from *wanted*: 0 is best, None is unusable."""
    if (found.os, found.architecture) != (wanted.os, wanted.architecture):
        return None
    baseline = _BASELINES.get(wanted.architecture)
    have, want = found.variant or baseline, wanted.variant or baseline
    if have == want:
        return 0
    have_number, want_number = _variant_number(have), _variant_number(want)
    if have_number is None or want_number is None:
        # Names without an order: good enough only when no particular one was asked for.
        return 10_000 if wanted.variant is None else None
    if have_number < want_number:
        return want_number - have_number  # an older variant runs on a newer processor
    # A newer one may not; who named no variant still gets it when there is nothing else.
    return 10_000 + have_number if wanted.variant is None else None


def _variant_number(variant: str | None) -> int | None:
    found = _VARIANT_NUMBER.fullmatch(variant or "")
    return int(found[1]) if found else None
