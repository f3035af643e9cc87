"""gacq-deploy: from a diffusion denoiser to a verified INT8 engine.

``import gacq_deploy as gd`` loads nothing else: what ``__init__.pyi`` lists is imported when it is first used, so that
a program that only runs an engine needs no PyTorch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
