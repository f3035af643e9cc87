"""What stands in a pipeline for its denoiser? A weightless module that owns an engine and answers like the model."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from gacq_deploy.artifact import ModelRecord
from gacq_deploy.backends.base import Array, Engine
from gacq_deploy.call import TIMESTEP
from gacq_deploy.diffusers.call import CallReader
from gacq_deploy.diffusers.faces import FACES, check_config
from gacq_deploy.errors import EngineError
from gacq_deploy.runtime import predict


class EngineDenoiser(nn.Module):
    """A denoiser of diffusers whose steps run in an engine; it owns the engine and closes it.

    It is called as the model it stands for, and answers in that model's output class. ``device`` and ``dtype`` are
    those of the pipeline around it: they follow ``.to(...)``, which moves nothing, and say where a pipeline makes its
    states. A state may come from any device and in any float dtype; the prediction goes back there. The engine stays
    where it was opened and computes as it was built.

    A batch larger than the engine takes is split, and a lone row runs as two, so that an image does not depend on what
    it is made beside.
    """

    def __init__(self, engine: Engine, record: ModelRecord, config: Mapping[str, Any]) -> None:
        """Take over an engine.

        Args:
            engine: runs graphs or a plan of this model.
            record: of the model that was calibrated.
            config: of the same model, as in its ``config.json``.

        Raises:
            ModelError: the configuration is another model's.
        """
        super().__init__()
        check_config(config, record)
        face = FACES[record.family]
        shape = engine.outputs[0].shape
        self.config = face.complete(config, shape[1] if len(shape) > 1 else None)
        self.engine = engine
        self._output = face.output
        self._reader = CallReader(face.signature(), engine.inputs, face.label_tables(self.config))
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self.eval()
        if "text_embeds" in record.conditioning:  # SDXL's pipelines look up how wide the model wants them
            width = self.config.projection_class_embeddings_input_dim
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    @property
    def device(self) -> torch.device:
        """Where the pipeline makes its states."""
        return self._buffer().device

    @property
    def dtype(self) -> torch.dtype:
        """In what the pipeline makes its states."""
        return self._buffer().dtype

    @property
    def in_channels(self) -> int:
        """Channels of a state."""
        return int(self.config.in_channels)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step, with the arguments of the model of diffusers.

        Timesteps are numbers or tensors, one or one a row, whole.

        Returns:
            The model's output class, or with ``return_dict=False`` a tuple; its ``sample`` is ``[N, C, H, W]`` on the
            device and in the dtype of the state that was given.

        Raises:
            UsageError: an argument that the engine cannot honour, or that does not fit.
            EngineError: a shape does not fit, the run failed, the prediction is not finite, or the engine is closed.
            ResourceError: out of memory.
        """
        call = self._reader.read(args, kwargs)
        predicted = predict(self.engine, call.feeds)
        _check_finite(predicted, call.feeds[TIMESTEP], self.engine)
        answer: Tensor = torch.from_numpy(predicted).to(device=call.sample.device, dtype=call.sample.dtype)
        return self._output(sample=answer) if call.return_dict else (answer,)

    def extra_repr(self) -> str:
        """Say which engine runs."""
        return self.engine.label

    def close(self) -> None:
        """Close the engine; a second call does nothing."""
        self.engine.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _buffer(self) -> Tensor:
        return self.get_buffer("_place")


def _check_finite(predicted: Array, timesteps: Array, engine: Engine) -> None:
    bad = ~np.isfinite(predicted).reshape(len(predicted), -1).all(axis=1)
    if bool(bad.any()):
        row = int(np.flatnonzero(bad)[0])
        raise EngineError(
            f"{engine.label}: the prediction is not finite at timestep {int(timesteps[row])}, row {row}.",
            "Run `gacq-deploy parity` on the run directory: it names the first layer that departs.",
        )
