"""Messages that a worker reads from Redis, and messages that it sends."""
