"""What the user asked for: the sections of a recipe, where they were written, and the plan they make for a model."""
