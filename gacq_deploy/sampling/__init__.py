"""How noise becomes an image: samplers, timesteps and what an error in one step does to the image."""
