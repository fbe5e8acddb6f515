"""What a worker reads and writes for its runs in the tables of Orcheo and LangGraph, without importing either."""
