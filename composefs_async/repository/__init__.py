"""`Repository`: one open repository, each operation in two forms.

``x()`` blocks, ``x_async()`` runs the same function in a worker thread; what exists only as async has no suffix.
Use it with ``with`` or ``async with``, which closes it.  The functions themselves are in `composefs_async._repo`; here
they are methods, in one module for each kind of thing.
"""

from __future__ import annotations

from .._aio.operations import counted
from .._repo.state import RepoState
from .images import ImageOperations
from .maintenance import UpkeepOperations
from .references import ReferenceOperations
from .rootless import RootlessOperations
from .streams import StreamOperations

__all__ = ["Repository"]


@counted
class Repository(StreamOperations, ImageOperations, RootlessOperations, ReferenceOperations, UpkeepOperations):
    """An open repository; holds a shared lock, which keeps garbage collectors of all processes away.

    Safe for use from several threads and event loops of one process, until `close` or the end of its ``with`` block,
    which wait for operations under way; later ones raise `RepositoryClosedError`.  In a process that was forked every
    operation raises `WrongProcessError`: open the path again there.  Nothing that is
    stored survives a power loss before `sync`, or before a publishing operation (`write_stream`, `register_stream`,
    `name_stream`) returns.

    Every operation may raise `OSError` with the path in its ``filename``, and what writes `ReadOnlyRepositoryError`.
    Sizes are bytes.  ``x_async`` raises what ``x`` does; whoever is cancelled waits for the thread at work.
    """


def state_of(repository: Repository) -> RepoState:
    """What the functions of `composefs_async._repo` work on; for the modules of this package."""
    return repository._state
