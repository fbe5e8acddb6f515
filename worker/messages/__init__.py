"""What a worker reads from Redis and sends to it."""
