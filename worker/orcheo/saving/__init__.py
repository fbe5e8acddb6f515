"""What a run leaves in the tables of Orcheo and LangGraph: its trace and its checkpoints."""
