"""The ledger: which runs were claimed, by whom, and how they ended; its statements and its readers."""
