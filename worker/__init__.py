"""Executes runs: begin, execute, settle, with a heartbeat beside it. Only `worker.orcheo` imports Orcheo."""
