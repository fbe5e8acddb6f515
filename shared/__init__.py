"""What dispatcher and worker have in common: settings, the ledger, its statements, the broker, logs."""
