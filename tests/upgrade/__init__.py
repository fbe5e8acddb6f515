"""The last release and this one beside each other, forth and back, under load: `python -m tests.upgrade`."""
