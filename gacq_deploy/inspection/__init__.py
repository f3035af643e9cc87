"""What a run directory holds, and whether its files are still what was written."""
