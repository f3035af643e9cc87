"""How does a pipeline of the diffusers library run an engine? ``pipe.unet = load_denoiser(run_directory)``."""

from gacq_deploy.diffusers.denoiser import EngineDenoiser
from gacq_deploy.diffusers.load import load_denoiser

__all__ = ["EngineDenoiser", "load_denoiser"]
