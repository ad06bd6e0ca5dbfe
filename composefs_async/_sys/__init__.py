"""The machine: file descriptors, links, locks and fs-verity.  Everything here blocks.

Nothing here knows what a repository is.  Every descriptor is O_CLOEXEC; whoever is handed one closes it.
"""
