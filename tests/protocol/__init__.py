"""A model of the protocol, and a machine that compares it with the database."""
