"""Runner processes, as the main process of a worker sees them: started, given runs, stopped, replaced."""
