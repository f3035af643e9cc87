"""Which patterns of a Q/DQ graph a target refuses, or runs in float."""
