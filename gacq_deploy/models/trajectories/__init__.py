"""How the model's own denoising trajectories become calibration samples."""
