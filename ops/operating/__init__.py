"""What operators decide and repair by command: scopes, fields of policies, pauses, and changes of many runs."""
