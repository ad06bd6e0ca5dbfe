"""Images in the storage of podman, buildah and skopeo, and in Docker's: read from disk, and believed in nothing.

`reference` and `configuration` tell which stores are meant, `records` reads what they say of images and layers,
`recipe` and `files` put a layer's tar together again from its ``tar-split`` and its unpacked files, `source` is the
`ImageSource`. Everything blocks but `source` and `docker`. Nothing is ever written there.
"""
