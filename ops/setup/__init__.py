"""What `orcheo-dispatch init` asks, checks and writes."""
