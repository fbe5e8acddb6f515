"""Alerts that our own processes send, where there is no Prometheus."""
