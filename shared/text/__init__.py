"""Text that leaves a process: without secrets, bounded in size, harmless to a terminal."""
