"""Every statement that changes a run or its ledger row. Each can be pasted into psql with its :names filled in.

A statement always locks the run before its ledger row, so that two statements never wait for each other.
Several rows are passed as arrays. States in predicates are literals, because a generic plan with a bound
state could not use the partial indexes. Nothing here executes a statement.

Orcheo's table is named without a schema, so that it is found through the search_path, as in Orcheo itself.
"""
