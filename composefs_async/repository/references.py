"""References of streams and images alike: listing, adding, renaming, removing, pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _maintenance
from .._aio.hops import hop
from .._repo import publish
from .._repo.publish import Category
from .opening import OpenRepository

if TYPE_CHECKING:
    from ..results import NamedReference

__all__ = ["ReferenceOperations"]


class ReferenceOperations(OpenRepository):
    """The names below ``refs/``, which keep what they lead to when garbage is collected."""

    def references(self) -> list[NamedReference]:
        """Return all references, dangling ones too: those of images first, each category sorted by name."""
        return _maintenance.refs.list_references(self._state)

    async def references_async(self) -> list[NamedReference]:
        """Return all references like `references`, in a worker thread."""
        return await hop(self.references)

    def add_reference(self, category: Category, reference: str, name: str, *, replace: bool = False) -> None:
        """Point *reference* at the stream or image *name*.  Durable on return.

        Raises:
            StreamNotFoundError, ImageNotFoundError: there is none.
            FileExistsError: there is such a reference, and *replace* is not set.
            InvalidNameError
        """
        _maintenance.refs.add_reference(self._state, category, reference, name, replace=replace)

    async def add_reference_async(
        self, category: Category, reference: str, name: str, *, replace: bool = False
    ) -> None:
        """Add a reference like `add_reference`, in a worker thread.  Durable."""
        await hop(self.add_reference, category, reference, name, replace=replace)

    def rename_reference(self, category: Category, reference: str, new: str, *, replace: bool = False) -> None:
        """Rename *reference* to *new*.  Durable on return; a crash leaves the old name, both, or the new one.

        Raises:
            StreamNotFoundError, ImageNotFoundError: there is no such reference.
            FileExistsError: *new* exists, and *replace* is not set.
            InvalidNameError
        """
        _maintenance.refs.rename_reference(self._state, category, reference, new, replace=replace)

    async def rename_reference_async(
        self, category: Category, reference: str, new: str, *, replace: bool = False
    ) -> None:
        """Rename a reference like `rename_reference`, in a worker thread.  Durable."""
        await hop(self.rename_reference, category, reference, new, replace=replace)

    def remove_reference(self, category: Category, reference: str) -> bool:
        """Remove *reference*, durably; return False if it was not there.  Its objects stay until a gc."""
        return publish.remove_reference(self._state, category, reference)

    async def remove_reference_async(self, category: Category, reference: str) -> bool:
        """Remove a reference like `remove_reference`, in a worker thread.  Durable."""
        return await hop(self.remove_reference, category, reference)

    def prune_references(self, *, dangling: bool = False, dry_run: bool = False) -> list[NamedReference]:
        """Remove references of artifacts to manifests that are gone, and return them.  Durable on return.

        Args:
            dangling: remove all other references that lead nowhere, too.
            dry_run: only tell which.
        """
        return _maintenance.refs.prune_references(self._state, dangling=dangling, dry_run=dry_run)

    async def prune_references_async(self, *, dangling: bool = False, dry_run: bool = False) -> list[NamedReference]:
        """Remove dangling references like `prune_references`, in a worker thread."""
        return await hop(self.prune_references, dangling=dangling, dry_run=dry_run)
