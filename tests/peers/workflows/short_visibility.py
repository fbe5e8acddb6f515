"""Orcheo's own Celery app with a visibility timeout of 10 s instead of an hour, so that redelivery can be seen."""

from orcheo_backend.worker.celery_app import celery_app as app

app.conf.broker_transport_options = {**(app.conf.broker_transport_options or {}), "visibility_timeout": 10}
