"""Mutants of the product's SQL: each condition dropped or negated, and each arm of a CASE, one at a time."""
