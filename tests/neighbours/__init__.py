"""Bad neighbours: runs, rows, messages and readers that must harm no other run. `python -m tests.neighbours`."""
