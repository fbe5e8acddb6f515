"""Real servers and the real Orcheo API as child processes, for demo and tests: nothing to install or start."""
