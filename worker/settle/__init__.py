"""Settles runs: how each ended, one statement for many, and the work that follows."""
