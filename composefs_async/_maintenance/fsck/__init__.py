"""The parts of a check, one module per kind of thing; `fsck.check` puts them together."""
