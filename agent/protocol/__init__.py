"""The shared leaf: block grid, digests, frames, messages and errors. It imports nothing of ours.

docs/protocol.md is the same in prose, well enough to write another agent from.
"""
