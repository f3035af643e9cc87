"""The model source: families, one call shape, blocks, trajectories. The only room that knows diffusers' classes."""
