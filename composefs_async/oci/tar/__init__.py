"""Tar archives without I/O: headers, extended headers, splitting into streams, members read back, and writing."""
