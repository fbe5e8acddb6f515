"""Execute runs: begin, execute, settle, and send heartbeats meanwhile. Only the folder `orcheo` imports Orcheo."""
