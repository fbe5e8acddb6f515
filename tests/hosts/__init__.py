"""Processes and servers on hosts of their own, and what a network does to them: cuts, one-way cuts, delay and loss."""
