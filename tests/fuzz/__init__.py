"""Whatever Redis, HTTP or the environment brings: no traceback, one clear line, no secret in it, and nothing lost."""
