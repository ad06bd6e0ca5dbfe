"""Boots a virtual machine whose kernel has fs-verity, to run one command in it.

`settings` says where things are and what this machine must have; `options` is the command line; `images` makes
disk images; `machine` is one boot of QEMU; `crash` records the writes of a command and checks the states that a
power cut could have left. The scripts `run` and `crash` beside this package are the way in. It uses nothing but
the standard library, because it runs before anything is installed.
"""
