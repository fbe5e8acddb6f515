"""The acceptance suite against older and the newest releases of Orcheo and LangGraph: `python -m tests.compat`."""
