"""Would this run build on that GPU: the `check` command."""
