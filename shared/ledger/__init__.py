"""The ledger: which runs were claimed, by which process, and how they ended; its statements and queries."""
