"""Runs as an operator sees them: found, explained, and repaired by hand."""
