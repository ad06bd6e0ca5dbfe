"""Async-first composefs repositories for Python."""
