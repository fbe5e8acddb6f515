"""What operators decide and do: policies, repairs of runs, and the log of both."""
