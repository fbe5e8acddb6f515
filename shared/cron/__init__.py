"""When due cron triggers are dispatched, and the record of dispatches."""
