"""Images made here: a layer of each tree or tar, and the config.

`layer_tar` makes the tar of a directory, which never exists on disk; `config` makes the documents; `builder` leads.
"""
