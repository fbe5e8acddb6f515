"""Settle runs: determine how each ended, write many ends in one statement, and do the work that follows."""
