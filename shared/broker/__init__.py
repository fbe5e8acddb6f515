"""Redis: the Celery app, queues, and our keys."""
