"""What is done before the first run: tables, imports, and a rehearsal."""
