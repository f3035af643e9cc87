"""Who made this run? One signature over all that production reads of it; the keys are the user's own files."""
