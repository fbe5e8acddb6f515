"""The peers: no-op jobs on Procrastinate and on PgQueuer, set as their documentation advises."""
