"""Which processes and threads share the work."""
