"""Metrics of our processes for Prometheus."""
