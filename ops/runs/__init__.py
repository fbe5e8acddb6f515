"""Runs as an operator sees them: find, explain, repair."""
