"""Publishes claims to Redis."""
