"""Read and write Orcheo's and LangGraph's tables for the runs of a worker, without importing either."""
