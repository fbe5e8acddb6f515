"""Store the trace and the checkpoints of a run in the tables of Orcheo and LangGraph."""
