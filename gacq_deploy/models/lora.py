"""Which low-rank adapters are fused into the denoiser before anything else, and are they the same ones next time?"""

from __future__ import annotations
