"""A host: its checks, its units, its roles, the health of its processes."""
