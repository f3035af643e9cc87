"""Which states stand for the denoising path: the calibration set, its prompts and its conditioning."""
