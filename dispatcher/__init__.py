"""Claims pending runs in Postgres and publishes them to Redis. Never imports Orcheo, never executes a run."""
