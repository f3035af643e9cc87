"""Images from prompts: a pipeline of the diffusers library around a run's engine."""
