"""Health over HTTP: /livez, /readyz, /metrics and the status page."""
