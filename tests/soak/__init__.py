"""The soak: a real stack under a steady load for hours, and whether what it uses stays flat."""
