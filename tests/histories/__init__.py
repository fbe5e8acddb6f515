"""Is what the processes asked of the database, and what it answered, a legal history of each run?"""
