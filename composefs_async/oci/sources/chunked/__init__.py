"""zstd:chunked: layers of which only the files are fetched that a repository lacks.

``toc``: the format, without I/O; ``assembly``: the tar of a layer from what has been fetched and what is at hand.
Finding the parts of a blob on the network belongs to `sources.registry`, files by their content to `oci.contents`.

Source: containers/storage, pkg/chunked (internal/minimal/compression.go and its documentation of the format).
"""
