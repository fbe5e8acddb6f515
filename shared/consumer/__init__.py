"""Celery's consumer as our processes use it, and the monitoring of its progress."""
