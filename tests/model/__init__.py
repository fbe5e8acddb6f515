"""The protocol as a finite model, explored exhaustively: `python -m tests.model`."""
