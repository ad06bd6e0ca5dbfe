"""Why two images differ: the known `causes`, and the `search` among them."""
