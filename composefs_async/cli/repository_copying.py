"""The form of ``oci copy`` that brings an image from another repository."""

from __future__ import annotations

from dataclasses import replace

from .account import tell
from .context import Settings, print_json
from .output import printable
from .progress import showing, size_text

__all__ = ["copy_from"]


def copy_from(
    settings: Settings,
    origin: str,
    image: str,
    name: str | None,
    *,
    zerocopy: bool,
    progress: str,
    json_output: bool,
) -> None:
    """Copy *image* out of the repository *origin*, and print what has come."""
    from ..oci.repository_copy import CopiedImage, copy_image

    tag = name if name is not None or image.startswith("@") else image
    theirs = replace(settings, repo=origin, place=None, algorithm=None, require_verity=False, version=None)
    with settings.open() as target, theirs.open() as source, showing(progress) as show:

        async def work() -> CopiedImage:
            return await copy_image(target, source, image, tag=tag, zerocopy=zerocopy, progress=show)

        found = settings.run(work)
    if json_output:
        print_json(
            {
                "manifest": found.manifest_digest,
                "config": found.config_digest,
                "verity": found.manifest_id.hex(),
                "config_verity": found.config_id.hex(),
                "tagged": found.tag,
                "objects": {"copied": found.copied, "shared": found.shared, "present": found.present},
                "size": found.size,
            }
        )
        return
    tell(f"manifest {found.manifest_digest}")
    tell(f"config   {found.config_digest}")
    tell(f"verity   {found.manifest_id.hex()}")
    if found.tag is not None:
        tell(f"tagged   {printable(found.tag)}")
    tell(
        f"objects  {found.copied} copied + {found.shared} shared + {found.present} already present; "
        f"{size_text(found.size)}"
    )
