"""Garbage collection: what may be removed (`candidates`, `shards`), and removing it (`collect`)."""
