"""The blocking repository: plain functions over one `RepoState`.

Each operation is written once, here, as a function that blocks.  `composefs_async.repository` gives it its
two public forms.  No function here awaits or knows that there is an event loop.
"""
