"""What executes runs: the protocol of an executor, and what it may use."""
