"""Settles runs: how each ended, one statement for many, and what is left to do afterwards."""
