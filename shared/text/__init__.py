"""Text that leaves a process: redacted, limited in size and safe for a terminal."""
