"""How a run's engine makes images: the `run` command."""
