"""Looking after a repository: what is reachable, garbage collection, checking, repair, usage, upgrades.

Plain functions over one `RepoState`, all of which block.  `composefs_async.repository` makes them methods.  Nothing
here stores what users bring (`composefs_async._repo`) or knows of OCI documents (`composefs_async.oci`).
"""
