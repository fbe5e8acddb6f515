"""Celery's consumer as our processes use it, and the watch on its progress."""
