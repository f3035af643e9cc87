"""The model source: families, one call shape, blocks, trajectories. The only folder that knows diffusers' classes."""
