"""What Prometheus may read of our processes."""
