"""How a file reaches the disk whole, and whether it is still what was written."""
