"""The programs that run a peer: one file each, started with `python -m` in an environment of their own.

They import this folder, numpy and what the peer brings along, and nothing else of this project: an
environment with Ray in it has no AMP4EC. `ours` is the exception, as AMP4EC is no guest here.
"""
