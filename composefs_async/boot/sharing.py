"""Kernels that several deployments have in common, of which bootc keeps one.

Owns which deployment's kernel and initrd take the place of a new one's.  Does not own what is written (`plan`), nor the
origins of deployments, where the digests are (`state`).
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from .bootfiles import BootFile
from .plan import BootPlan
from .state import state_path

__all__ = ["share_kernels"]

_ORIGIN_LIMIT: Final = 1 << 20


def share_kernels(plan: BootPlan, bootdir: str, sysroot: str, image: str) -> None:
    """Use kernel and initrd of another deployment if they are the same, as bootc does."""
    if not plan.boot_digest or plan.boot_type != "bls":
        return
    own = f"bootc_composefs-{image}"
    deploy = os.path.dirname(state_path(sysroot, image))
    with contextlib.suppress(FileNotFoundError):
        for other in sorted(os.listdir(deploy)):
            place = f"bootc_composefs-{other}"
            if other == image or not _has_kernel(bootdir, place, plan, own):
                continue
            with contextlib.suppress(OSError), open(os.path.join(deploy, other, f"{other}.origin"), "rb") as file:
                if f"\ndigest={plan.boot_digest}\n".encode() in file.read(_ORIGIN_LIMIT):
                    _use(plan, own, place)
                    return


def _has_kernel(bootdir: str, place: str, plan: BootPlan, own: str) -> bool:
    """Whether all files are there, with the right sizes."""
    for file in plan.files:
        if file.path.startswith(f"{own}/"):
            path = os.path.join(bootdir, place, file.path.removeprefix(f"{own}/"))
            try:
                if os.stat(path).st_size != file.size:
                    return False
            except OSError:
                return False
    return True


def _use(plan: BootPlan, own: str, place: str) -> None:
    changed: list[BootFile] = []
    for file in plan.files:
        if file.path.startswith(f"{own}/"):
            file = BootFile(place + file.path.removeprefix(own), file.content)  # noqa: PLW2901
        elif isinstance(file.content, bytes):
            file = BootFile(file.path, file.content.replace(f"/{own}/".encode(), f"/{place}/".encode()))  # noqa: PLW2901
        changed.append(file)
    plan.files = changed
