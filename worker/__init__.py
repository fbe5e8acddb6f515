"""Executes runs: begin, execute, settle, with a heartbeat beside it. Only the folder `orcheo` imports Orcheo."""
