"""The commands of `orcheo-dispatch`, grouped as in its help."""
