"""Inside a runner: the only processes that import, execute or unpickle what a workflow provides."""
