"""Every statement that moves a run or its ledger row: each can be pasted into psql with its :names filled in.

A statement locks the run before its ledger row, always in that order, so that two of them never wait
for each other. Several rows go in as arrays. The states in predicates are literals: with a bound state
a generic plan could not use the partial indexes. Nothing here executes.

Orcheo's table is named without a schema: it is found by the search_path, as Orcheo itself finds it.
"""
