"""Images out of a repository, into archives, directories and daemons.

`layers` decides in which form each layer leaves, `images` makes the manifest that says so, `archives` and
`directories` write, `export` leads. Everything blocks but `export`.
"""
