"""gacq-deploy: from a diffusion denoiser to a verified INT8 engine."""

__version__ = "0.1.0"
