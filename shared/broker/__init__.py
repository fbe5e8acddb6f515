"""Redis: the Celery app, queues, and what else Redis holds of ours."""
