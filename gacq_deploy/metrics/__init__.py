"""How far apart two results are: arrays, images, and differences of errors with their spread."""
