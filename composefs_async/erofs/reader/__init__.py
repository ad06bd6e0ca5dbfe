"""Readers of EROFS images that trust nothing in them: into a tree (`tree`), or as a walk that builds none (`walk`)."""
