"""Importing layers and images: unpacking, hashing, splitting and storing, and the tree that grows beside it."""
