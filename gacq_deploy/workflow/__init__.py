"""Every stage of a run in order, none twice."""
