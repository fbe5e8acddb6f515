"""The lifecycle of our processes: start, signals, progress, the service manager."""
