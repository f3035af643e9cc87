"""What stands in a pipeline for its denoiser? A weightless module that owns an engine and predicts like the model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from gacq_deploy.artifact.call import TIMESTEP
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.batches import predict
from gacq_deploy.diffusers.arguments import CallReader, signature_of
from gacq_deploy.diffusers.model_facade import make_facade
from gacq_deploy.errors import EngineError
from gacq_deploy.spec import Array


class EngineDenoiser(ModelMixin):
    """A denoiser of diffusers whose steps run in an engine; it owns the engine and closes it.

    It is called as the model it stands for, and returns that model's output class. ``device`` and ``dtype`` are
    those of the pipeline around it: they follow ``.to(...)``, which moves nothing, and say where a pipeline makes its
    states. A state may come from any device and in any float dtype; the prediction goes back there. The engine stays
    where it was opened and computes as it was built.

    A batch larger than the engine takes is split, and a lone row runs as two, so that an image does not depend on what
    it is made beside.
    """

    def __init__(
        self,
        engine: Engine,
        record: ModelRecord,
        config: Mapping[str, Any],
        *,
        kind: type[Any] | None = None,
    ) -> None:
        """Take over an engine.

        Args:
            engine: runs graphs or an engine of this model.
            record: of the model that was calibrated.
            config: of the same model, as in its ``config.json``.
            kind: the model's class, where it is not one of diffusers.

        Raises:
            ModelError: configuration, class or engine are another model's.
        """
        super().__init__()  # type: ignore[no-untyped-call] # of diffusers
        self._facade = make_facade(record, config, kind)
        call = self._facade.call
        self._reader = CallReader(
            signature_of(call, self._facade.kind), call, engine.inputs, self._facade.labels
        )
        self.config = self._facade.config
        self.engine = engine
        self._output_path = None if record.call is None else record.call.output
        for name, value in self._facade.attributes.items():
            setattr(self, name, value)
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self.eval()

    @property  # type: ignore[misc] # object's own can be set
    def __class__(self) -> Any:
        """The class that it stands for: pipelines warn of a part that is of another."""
        facade = self.__dict__.get("_facade")
        return type(self) if facade is None or facade.kind is None else facade.kind

    @property
    def device(self) -> torch.device:
        """Where the pipeline makes its states."""
        return self._buffer().device

    @property
    def dtype(self) -> torch.dtype:
        """In what the pipeline makes its states."""
        return self._buffer().dtype

    def __getattr__(self, name: str) -> Any:
        """Return a setting of the configuration, as models of diffusers do; of the network itself nothing is there."""
        module: Any = self
        try:
            return nn.Module.__getattr__(module, name)
        except AttributeError:
            config = self.__dict__.get("config", {})
            if not name.startswith("_") and name in config:
                return config[name]
            raise AttributeError(
                f"An engine has no '{name}': it stands for {config.get('_class_name', 'a denoiser')} with its call and "
                "configuration; layers, attention processors and adapters are not in it. Use the float model for this.",
                name=name,
                obj=self,
            ) from None

    def cache_context(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002 (diffusers' own)
        """Do nothing: what diffusers caches between steps lies in layers, which an engine has not."""
        return nullcontext()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step, with the arguments of the model it stands for.

        Timesteps are numbers or tensors, one or one a row, whole where the model was calibrated with whole ones.

        Returns:
            The model's output class, or with ``return_dict=False`` a tuple; its first field is ``[N, ...]`` on the
            device and in the dtype of the state that was given. Where pipelines cut a learned variance off, it is
            zero. A class that is not diffusers' own returns as it does.

        Raises:
            UsageError: an argument that the engine cannot honour, or that does not fit.
            EngineError: a shape does not fit, the run failed, the prediction is not finite, or the engine is closed.
            ResourceError: out of memory.
        """
        call = self._reader.read(args, kwargs)
        predicted = predict(self.engine, call.feeds)
        _check_finite(predicted, call.feeds[TIMESTEP], self.engine)
        prediction: Tensor = torch.from_numpy(predicted).to(
            device=call.sample.device, dtype=call.sample.dtype
        )
        if self._facade.gives_variance:
            prediction = torch.cat([prediction, torch.zeros_like(prediction)], 1)
        if self._output_path is not None:
            return {self._output_path[0]: prediction} if self._output_path else prediction
        return self._facade.to_output(prediction) if call.return_dict else (prediction,)

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
        place: Tensor = self.get_buffer("_place")
        return place


def _check_finite(predicted: Array, timesteps: Array, engine: Engine) -> None:
    bad = ~np.isfinite(predicted).reshape(len(predicted), -1).all(axis=1)
    if bool(bad.any()):
        row = int(np.flatnonzero(bad)[0])
        raise EngineError(
            f"{engine.label}: the prediction is not finite at timestep {timesteps[row]:g}, row {row}.",
            "Run `gacq-deploy parity` on the run directory: it names the first layer that departs.",
        )
