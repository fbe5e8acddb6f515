"""Runs whose process is killed or paused, here and in systems of the same kind: `python -m tests.peers`."""
